"""`python launch.py prompt="a red mushroom"`; `--help` shows everything."""

from __future__ import annotations

import gc
import sys

from threestudio_rf.app.start import start

if __name__ == "__main__":
    code = start(sys.argv[1:])
    gc.freeze()  # everything ends with the process: without this the interpreter searches it for cycles, for a second
    sys.exit(code)
