"""task=train_tiny: one part of the embedded networks. What trains them is imported only when it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import GOOD, UserError, user_path
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config, one_of
from threestudio_rf.app.settings.train_tiny import TrainTinyConfig
from threestudio_rf.core.convert import KINDS
from threestudio_rf.priors.tiny import weights_folder

if TYPE_CHECKING:
    from threestudio_rf.tiny.train.denoise import Objective
    from threestudio_rf.tiny.train.stage import Sharpening


def command(run: Run) -> int:
    """One part of the embedded networks; the same command goes on where it stopped."""
    from threestudio_rf.tiny.train.crew import Crew
    from threestudio_rf.tiny.train.parts import Shared, run_part
    from threestudio_rf.tiny.train.ship import folder_of as shipped
    from threestudio_rf.tiny.train.ship import ship

    settings = run.config.train_tiny
    try:
        start = weights_folder() / shipped(settings.part) if settings.start == "shipped" else settings.start
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
    from threestudio_rf.tiny.train.stage import Sharpening

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
    from threestudio_rf.tiny.train.denoise import NORMS, Objective
    from threestudio_rf.tiny.train.unet import OBJECTIVES

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


def folder_of(config: Config) -> Path:
    """Where the parts are trained: always the same folder, so that they find each other and go on."""
    return user_path(config.train_tiny.folder or Path(config.exp_root_dir) / "train_tiny", "train_tiny.folder")
