"""Checks of pictures as a scene, and the sizes that a prior takes."""

from __future__ import annotations

from threestudio_rf.app.build.prior import GAUSSIAN_SIZE
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.scenes.image import BOUNDS

PICTURE_MULTIPLES = {"sd": 64, "instaflow": 64, "tiny_exact": 1}
"""Pixels that a picture's sides are multiples of: VAE's factor times network's (SD's UNet halves latents thrice)."""
VAE_TIMES_PATCH = 16


def multiple_of(prior: PriorConfig) -> int:
    """What the sides of a picture are multiples of."""
    if prior.name == "gaussian":
        return prior.size or GAUSSIAN_SIZE
    return PICTURE_MULTIPLES.get(prior.name, VAE_TIMES_PATCH)


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
    factor = multiple_of(config.prior) if image.kind == "pixels" or config.prior.name == "gaussian" else 1
    if image.size % factor:
        raise UserError(f"scene.image.size={image.size}: expected a multiple of {factor} for prior {config.prior.name}")
