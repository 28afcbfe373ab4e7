"""The command of every `task=` and `mode=`, in one plain table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import GOOD, UserError, user_path
from threestudio_rf.app.report.score import show
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config, one_of
from threestudio_rf.app.settings.train_tiny import TrainTinyConfig
from threestudio_rf.app.tasks import doctor, edit, grid, invert, lift, sample
from threestudio_rf.app.tasks.output.finish import shown
from threestudio_rf.app.tasks.output.result import stored
from threestudio_rf.core.convert import KINDS
from threestudio_rf.tiny.train.denoise import NORMS, Objective
from threestudio_rf.tiny.train.stage import Sharpening
from threestudio_rf.tiny.train.unet import OBJECTIVES


def evaluate(run: Run) -> int:
    """The figures of a finished run, into its `metrics.json`."""
    result = stored(run)
    show(run, shown(result).figures(result))
    return GOOD


def export(run: Run) -> int:
    """The mesh of a finished run, or the files that its kind of scene has instead."""
    result = stored(run)
    return shown(result).export(result)


def validate(run: Run) -> int:
    """A few views of a finished run, of pictures all of them."""
    result = stored(run)
    shown(result).snapshot(result)
    return GOOD


def test(run: Run) -> int:
    """The turntable of a finished run, of pictures all of them."""
    result = stored(run)
    return shown(result).test(result)


def train_tiny(run: Run) -> int:
    """One part of the embedded networks; the same command goes on where it stopped."""
    from threestudio_rf.priors.tiny import weights_folder
    from threestudio_rf.tiny.train.crew import Crew
    from threestudio_rf.tiny.train.parts import Shared, run_part
    from threestudio_rf.tiny.train.ship import folder_of, ship

    settings = run.config.train_tiny
    try:
        start = weights_folder() / folder_of(settings.part) if settings.start == "shipped" else settings.start
        options: dict[str, Any] = {"steps": settings.steps, "seconds": settings.seconds, "batch": settings.batch}
        options |= {"lr": settings.lr, "per_shape": settings.per_shape}
        options |= {"start": Path(start) if start else None, "device": run.device}
        options |= {"objective": _objective(settings), "sharpening": _sharpening(settings)}
        crew = None
        if settings.processes > 1:
            crew = Crew(settings.processes, Shared(settings.part, run.folder, options))
        run_part(settings.part, run.folder, **options, report=LOG.info, crew=crew)
    except ValueError as error:
        raise UserError(f"train_tiny: {error}") from error
    if settings.ship:
        ship(run.folder, weights_folder())
        LOG.info("shipped to %s", weights_folder())
    return GOOD


def _sharpening(settings: TrainTinyConfig) -> Sharpening | None:
    """The discriminator that the settings name; None without one."""
    if settings.discriminator == "none":
        if settings.perceptual:
            raise UserError(
                f"train_tiny.perceptual={settings.perceptual}: expected a discriminator beside it, got none"
            )
        return None
    return Sharpening(
        settings.discriminator, settings.discriminator_start, settings.discriminator_weight, settings.perceptual
    )


def _objective(settings: TrainTinyConfig) -> Objective | None:
    """The objective that the settings name; None when they leave it to the part."""
    own = OBJECTIVES.get(settings.part, Objective())
    try:
        chosen = replace(
            own,
            kind=one_of(settings.target, KINDS) if settings.target else own.kind,
            norm=one_of(settings.norm, NORMS),
            elbo=settings.elbo,
            learn_logvar=settings.learn_logvar,
        )
    except ValueError as error:
        raise UserError(f"train_tiny.elbo={settings.elbo}: {error}") from None
    return None if chosen == own else chosen


def tiny_folder(config: Config) -> Path:
    """Where the parts are trained: always the same folder, so that they find each other and go on."""
    return user_path(config.train_tiny.folder or Path(config.exp_root_dir) / "train_tiny", "train_tiny.folder")


TASKS: dict[str, Callable[[Run], int]] = {
    "lift": lift.command,
    "sample": sample.command,
    "edit": edit.command,
    "invert": invert.command,
    "evaluate": evaluate,
    "export": export,
    "train_tiny": train_tiny,
    "grid": grid.command,
    "doctor": doctor.command,
}
MODES: dict[str, Callable[[Run], int]] = {"train": lift.command, "validate": validate, "test": test, "export": export}


def command_of(config: Config) -> Callable[[Run], int]:
    """The function of a task, for lift of its mode."""
    return MODES[config.mode] if config.task == "lift" else TASKS[config.task]
