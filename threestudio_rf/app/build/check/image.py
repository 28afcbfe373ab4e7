"""Checks of pictures as a scene."""

from __future__ import annotations

from threestudio_rf.app.build.prior import facts_of, multiple_of
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.scenes.image import BOUNDS


def check_image(config: Config) -> None:
    """UserError for a bound, a number of particles or a size that cannot work."""
    image = config.scene.image
    if image.per_step > image.particles:
        raise UserError(
            f"scene.image.per_step={image.per_step}: expected at most scene.image.particles={image.particles}"
        )
    if image.bound not in ("auto", *BOUNDS[image.kind]):
        raise UserError(
            f"scene.image.bound={image.bound}: expected auto, {', '.join(BOUNDS[image.kind])} "
            f"with scene.image.kind={image.kind}"
        )
    same = image.kind == "pixels" or facts_of(config.prior).source == "formula"
    factor = multiple_of(config.prior) if same else 1
    if image.size % factor:
        raise UserError(f"scene.image.size={image.size}: expected a multiple of {factor} for prior {config.prior.name}")
