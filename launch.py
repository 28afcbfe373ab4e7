"""`python launch.py prompt="a red mushroom"`; `--help` shows everything."""

from __future__ import annotations

import sys

from threestudio_rf.app.start import start

if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
