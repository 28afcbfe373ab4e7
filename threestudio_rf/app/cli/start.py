"""The way in: flags, environment, then the program. Nothing here imports torch, so `--help` is quick and the
environment is set before torch reads it."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

from threestudio_rf.app.errors import FAILED, GOOD, INTERRUPTED, USER_ERROR, UserError, as_utf8
from threestudio_rf.app.settings.flags import Launch, translate
from threestudio_rf.core.collector import uncollected
from threestudio_rf.version import __version__

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def prepare(launch: Launch, environment: MutableMapping[str, str]) -> None:
    """Set what must be set before torch is imported; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)
    if launch.gpu:
        environment.setdefault("CUDA_VISIBLE_DEVICES", launch.gpu)
        if "," in launch.gpu:
            launch.notes.append(f"--gpu {launch.gpu}: one process uses the first of these devices")


def _begin(argv: list[str]) -> int:
    if sys.version_info[:2] >= (3, 14):
        raise UserError(f"Python 3.11 to 3.13 is needed (Hydra 1.3 stops on 3.14), this is {sys.version.split()[0]}")
    launch = translate(as_utf8(argv))
    if launch.show == "help":
        from threestudio_rf.app.cli.help import text

        print(text())
        return GOOD
    if launch.show == "version":
        print(__version__)
        return GOOD
    prepare(launch, os.environ)
    with uncollected():
        from threestudio_rf.app.cli.main import run

    return run(launch, start)


def start(argv: list[str]) -> int:
    """Run one command line; the exit code. A closed pipe ends it in silence."""
    from threestudio_rf.app.console import safe_streams

    safe_streams()
    try:
        code = _begin(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return FAILED


def _close_stdout() -> None:
    """Send what is still buffered to nowhere, so that the interpreter's exit is silent too."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
