"""`python launch.py prompt="a red mushroom"`; `--help` shows everything."""

from __future__ import annotations

from threestudio_rf.__main__ import main

if __name__ == "__main__":
    main()
