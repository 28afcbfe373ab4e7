"""A frozen prior as a loss for somebody else's renderer, by the code of the trainer:

guidance = distill("a red mushroom", loss="rfds_rev")
for step in range(800):
    images = my_renderer(azimuth, elevation)                          # (B, 3, H, W) in [0, 1], with a graph
    guidance(images, step=step, azimuth=azimuth, elevation=elevation).loss.backward()
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.hints import tell
from threestudio_rf.app.build.method import embed_roles, lift_settings, method_of
from threestudio_rf.app.build.prior import build_prior
from threestudio_rf.app.build.scene import pick_device
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.layers import settings as settings_from
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import Distilled
from threestudio_rf.distill.method import distill as distilled
from threestudio_rf.priors.base import Condition, Prior, bind
from threestudio_rf.priors.facts import DEFAULT
from threestudio_rf.priors.twin import NAME as TWIN
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.trainer.lift import encoded, repeated, seen_from
from threestudio_rf.trainer.settings import progress


class Guidance:
    """A prior, a prompt and a loss. Calls are independent of each other: randomness is that of (seed, step)."""

    def __init__(self, config: Config, prior: Prior) -> None:
        self.config, self.prior, self.settings = config, prior, lift_settings(config)

    @cached_property
    def _plain(self) -> tuple[Condition, Condition]:
        both = self.prior.embed([self.config.prompt, self.config.negative_prompt])
        return both.select([0]), both.select([1])

    @cached_property
    def _by_view(self) -> tuple[Condition, Condition]:
        return embed_views(self.config, self.prior)

    def __call__(
        self, images: Tensor, *, step: int = 0, azimuth: Tensor | None = None, elevation: Tensor | None = None
    ) -> Distilled:
        """The loss of pictures (B, 3, H, W) in [0, 1], a scalar with a graph to them, as `.loss`; `.x0_hat` are the
        latents that the prior proposes instead.

        `step` in 0..steps - 1 decides t, the noise, and what else changes over a run. With azimuth and elevation (B,)
        in degrees (azimuth 0 looks at the front, 90 at the side that is on the right there) the prompt names the view.
        The gradient with respect to a latent is weight(t) residual / (elements of a latent) / B, so it does not
        change with resolution or batch. ValueError for shapes that do not fit, or for one angle without the other.
        """
        if (azimuth is None) != (elevation is None):
            raise ValueError("azimuth, elevation: got one of them, expected both or none")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: got {tuple(images.shape)}, expected (B, 3, H, W)")
        settings = self.settings
        latents = encoded(images, self.prior, settings)
        conditions, negatives = self._asked(len(images), azimuth, elevation)
        tell(self.prior, lambda: conditions["cond"], "loss")
        t = settings.times.draw(len(latents), step, settings.steps, settings.seed, schedule=self.prior.schedule)
        return distilled(
            latents,
            bind(self.prior, conditions),
            t.to(latents.device),
            method=settings.method,
            generator=generator(settings.seed, step, "noise"),
            negatives=negatives,
            progress=progress(step, settings.steps),
        )

    def _asked(
        self, n: int, azimuth: Tensor | None, elevation: Tensor | None
    ) -> tuple[dict[str, Condition], dict[str, Tensor]]:
        if azimuth is None or elevation is None:
            prompt, negative = self._plain
            extra = embed_roles(self.config, self.prior, views=False)
            return {"cond": prompt, "uncond": negative} | dict(extra), {}
        if azimuth.shape != (n,) or elevation.shape != (n,):
            raise ValueError(
                f"azimuth, elevation: got {tuple(azimuth.shape)}, {tuple(elevation.shape)}, expected ({n},)"
            )
        full = torch.ones(n)
        camera = Camera(azimuth.detach().cpu().float(), elevation.detach().cpu().float(), full, 45 * full, 1, 1)
        camera = repeated(camera, self.settings.times.draws)
        prompts, negative = self._by_view
        extra = embed_roles(self.config, self.prior, views=len(prompts) > 1)
        return seen_from(prompts, negative, camera=camera, settings=self.settings, extra=extra)


def distill(
    prompt: str,
    *,
    loss: str = "rfds",
    prior: str | Prior = DEFAULT,
    steps: int = 800,
    seed: int = 0,
    negative_prompt: str = "",
    device: str = "auto",
    settings: dict[str, Any] | None = None,
) -> Guidance:
    """Score distillation of `prompt` as a loss; call it with pictures.

    `loss` and `prior` are files of configs/ by name, or a prior of `load_prior`; `steps` is how long the run will be,
    over which t and weights may change. `settings` are others by dotted key, {"loss.scale": 20}. Raises UserError for
    what the command line would refuse and for losses with a twin that learns beside the run (vsd), PriorError for
    weights that cannot be used.

    >>> images = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    >>> distill("a red ball", loss="sds", prior="tiny_sd")(images).loss.backward()
    >>> images.grad.abs().sum() > 0
    tensor(True)
    """
    name = prior if isinstance(prior, str) else prior.name
    changes = {"prompt": prompt, "negative_prompt": negative_prompt, "seed": seed, "trainer.steps": steps}
    config = settings_from({"loss": loss, "prior": name}, changes | (settings or {}))
    check(config)
    if TWIN in method_of(config.loss).roles:
        raise UserError(f"loss={loss} learns a twin of the prior beside the run: use lift, or another loss")
    return Guidance(config, build_prior(config.prior, pick_device(device)) if isinstance(prior, str) else prior)
