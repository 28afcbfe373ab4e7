"""The command of every `task=` and `mode=`, in one plain table."""

from __future__ import annotations

from collections.abc import Callable

from threestudio_rf.app.errors import GOOD
from threestudio_rf.app.report.score import show
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.tasks import doctor, edit, grid, invert, lift, sample, train_tiny
from threestudio_rf.app.tasks.output.finish import page_so_far, shown
from threestudio_rf.app.tasks.output.result import stored


def evaluate(run: Run) -> int:
    """The figures of a finished run, into its `metrics.json`."""
    result = stored(run)
    show(run, shown(result).figures(result))
    page_so_far(result)
    return GOOD


def export(run: Run) -> int:
    """The mesh of a finished run, or the files that its kind of scene has instead."""
    result = stored(run)
    code = shown(result).export(result)
    page_so_far(result)
    return code


def validate(run: Run) -> int:
    """A few views of a finished run, of pictures all of them."""
    result = stored(run)
    shown(result).snapshot(result)
    page_so_far(result)
    return GOOD


def test(run: Run) -> int:
    """The turntable of a finished run, of pictures all of them."""
    result = stored(run)
    code = shown(result).test(result)
    page_so_far(result)
    return code


TASKS: dict[str, Callable[[Run], int]] = {
    "lift": lift.command,
    "sample": sample.command,
    "edit": edit.command,
    "invert": invert.command,
    "evaluate": evaluate,
    "export": export,
    "train_tiny": train_tiny.command,
    "grid": grid.command,
    "doctor": doctor.command,
}
MODES: dict[str, Callable[[Run], int]] = {"train": lift.command, "validate": validate, "test": test, "export": export}


def command_of(config: Config) -> Callable[[Run], int]:
    """The function of a task, for lift of its mode."""
    return MODES[config.mode] if config.task == "lift" else TASKS[config.task]
