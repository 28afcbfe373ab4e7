"""task=sample: pictures straight from the prior, by the same core that distils."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from threestudio_rf.app.build import EMBEDDED, build_prior
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import GOOD
from threestudio_rf.app.run import Run
from threestudio_rf.app.settings import SampleConfig
from threestudio_rf.app.words import warn_unknown_words
from threestudio_rf.core.guide import cfg, combine
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.solve import ancestral, midpoint, solve
from threestudio_rf.core.times import spacing
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.priors.base import Bound, Prior, bind

COLUMNS = 8


def sample(prior: Prior, predict: Bound, noise: Tensor, settings: SampleConfig, draws: Generator) -> Tensor:
    """Latents from `noise` (B, C, H, W) by `settings.steps` steps of the chosen solver; `draws` is for ancestral."""
    weights = cfg(settings.cfg)
    times = spacing(settings.steps, shift=settings.shift).to(noise.device)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return combine(predict(x, t, list(weights)), weights)

    states: Iterator[Tensor]
    if settings.sampler == "ancestral":
        states = ancestral(
            field, noise, times, schedule=prior.schedule, kind=prior.kind, eta=settings.eta, generator=draws
        )
    else:
        solver = {"euler": solve, "midpoint": midpoint}[settings.sampler]
        states = solver(field, noise, times, schedule=prior.schedule, kind=prior.kind)
    return deque(states, maxlen=1)[0]


def command(run: Run) -> int:
    """`save/00000.png ...` and `save/sheet.png`; without fresh noise picture i depends on the seed
    and i only."""
    config, settings = run.config, run.config.sample
    prior = build_prior(config.prior, run.device)
    if config.prior.name in EMBEDDED:
        warn_unknown_words(config.prompt)
    text = config.prompt
    if settings.view:
        text = config.prior.view_pattern.replace("{view}", settings.view).replace("{prompt}", config.prompt)
    both = prior.embed([text, config.negative_prompt])
    predict = bind(prior, {"cond": both.select([0]), "uncond": both.select([1])})
    pictures: list[Tensor] = []
    for first in range(0, settings.n, settings.batch):
        numbers = range(first, min(first + settings.batch, settings.n))
        noise = torch.cat([normal((1, *prior.latent_shape), generator(config.seed, i, "sample")) for i in numbers])
        with torch.no_grad():
            latents = sample(prior, predict, noise.to(run.device), settings, generator(config.seed, first, "fresh"))
            images = prior.decode(latents).cpu()
        for i, image in zip(numbers, images, strict=True):
            png(run.save(f"{i:05d}.png"), image)
        pictures += list(images)
        LOG.info("%d of %d pictures", len(pictures), settings.n)
    rows = [("", pictures[i : i + COLUMNS]) for i in range(0, len(pictures), COLUMNS)]
    LOG.info("wrote %s", png(run.save("sheet.png"), contact_sheet(rows, cell=max(64, min(256, pictures[0].shape[-1])))))
    return GOOD
