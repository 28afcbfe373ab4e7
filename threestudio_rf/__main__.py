"""`python -m threestudio_rf prompt="a red mushroom"`, and the command `threestudio-rf`; `--help` shows everything."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

from threestudio_rf.app.cli.start import start


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = start(sys.argv[1:])
    if "triton" not in sys.modules:  # which complains of what is never collected
        gc.freeze()  # everything ends with the process: the interpreter would search it for cycles, for a second
    sys.exit(code)


if __name__ == "__main__":
    main()
