"""Where a run looks from and what it says there: the prompts of all views, and the turntable."""

from __future__ import annotations

from threestudio_rf.app.build.method import names_of, pair
from threestudio_rf.app.build.prior import wording
from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.console import LOG
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.groups import CameraConfig
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.views import unreachable_views, view_prompts
from threestudio_rf.scenes.camera import Camera, orbit


def embed_views(config: Config, prior: Prior) -> tuple[Condition, Condition]:
    """Embed the prompts of all views, in the order of `names_of`, and the negative prompt. Pictures have one prompt,
    and so has a prior that takes the camera itself."""
    views, posed = config.prior, SCENES[config.scene.name].posed
    if not posed or wording(views) == "camera":
        prompt = config.prompt if posed else with_view(config, config.scene.image.view)
        both = prior.embed([prompt, config.negative_prompt])
        return both.select([0]), both.select([1])
    given = {
        "side": views.prompt_side,
        "front": views.prompt_front,
        "back": views.prompt_back,
        "overhead": views.prompt_overhead,
    }
    prompts = view_prompts(
        config.prompt,
        pattern=views.view_pattern,
        overrides={view: text for view, text in given.items() if text is not None},
        fits=prior.fits,
        views=names_of(views),
    )
    unseen = unreachable_views(
        pair(config.camera.azimuth),
        pair(config.camera.elevation),
        front=views.front,
        back=views.back,
        overhead=views.overhead,
    )
    if unseen and wording(views) == "four":
        LOG.info("no camera of these ranges asks for the view: %s", ", ".join(unseen))
    both = prior.embed([*prompts, config.negative_prompt])
    return both.select(list(range(len(prompts)))), both.select([len(prompts)])


def with_view(config: Config, view: str) -> str:
    """The prompt with a view word; the bare prompt where `view` is empty."""
    pattern = config.prior.view_pattern if view else "{prompt}"
    return pattern.replace("{view}", view).replace("{prompt}", config.prompt)


def turntable(config: CameraConfig, views: int, *, scale: int = 1) -> Camera:
    """The cameras of the final pictures, of `scale` times their size."""
    return orbit(
        views,
        elevation=config.eval_elevation,
        distance=config.eval_distance,
        fovy=config.eval_fovy,
        height=scale * config.eval_size,
        width=scale * config.eval_size,
    )
