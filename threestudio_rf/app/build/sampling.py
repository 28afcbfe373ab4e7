"""A sampling plan from settings: times, rule, guided field and start of pictures straight from a prior."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from threestudio_rf.app.build.hints import tell
from threestudio_rf.app.build.picture import fitted, hidden_part
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.convert import noise
from threestudio_rf.core.ddpm import clip, dynamic_threshold
from threestudio_rf.core.grid import NOISE_LAWS, Grid
from threestudio_rf.core.model import Corrector, Field
from threestudio_rf.core.random import Draws, generator, normal
from threestudio_rf.core.sample import State, keep, states
from threestudio_rf.core.solve import Rule
from threestudio_rf.core.times import from_strength
from threestudio_rf.priors.base import Prior, PriorError, bind

LIMITS = {"none": None, "clip": clip, "threshold": dynamic_threshold}


@dataclass(frozen=True)
class Plan:
    """The common part of all pictures of one command. `known` (1, C, h, w) are the latents of a given picture, `mask`
    (1, 1, h, w) is 1 where it is made anew, `pure` starts from noise alone."""

    prior: Prior
    field: Field
    grid: Grid
    rule: Rule
    seed: int
    device: torch.device
    known: Tensor | None = None
    mask: Tensor | None = None
    pure: bool = True

    @property
    def times(self) -> Tensor:
        """(steps + 1,) falling to the end."""
        return self.grid.times

    @property
    def steps(self) -> int:
        """How many steps are taken."""
        return len(self.times) - 1


def rule_of(settings: SampleConfig, sampler: str) -> Rule:
    """The sampler and its options; UserError for one that the sampler has no use for."""
    try:
        return Rule(
            sampler=sampler,
            eta=settings.eta,
            variance=cast(Literal["small", "large"], settings.variance),
            limit=LIMITS[settings.limit],
            temperature=settings.temperature,
            repeat_noise=settings.repeat_noise,
            noise_dropout=settings.noise_dropout,
        )
    except ValueError as error:
        raise UserError(f"sample: {error}") from None


def check_sample(settings: SampleConfig, *, negative_prompt: bool, image: bool, mask: bool) -> None:
    """UserError for settings that do not go together; the flags say what else is given."""
    rule_of(settings, _named(settings) or "euler")
    if mask and not image:
        raise UserError("sample.mask needs sample.image, the picture whose black part is kept")
    if settings.strength is not None and not image:
        raise UserError(f"sample.strength={settings.strength:g} needs sample.image, the picture to start from")
    if settings.perp_neg and not negative_prompt:
        raise UserError(f"sample.perp_neg={settings.perp_neg:g} needs a negative_prompt to push away from")
    if settings.perp_neg and settings.cfg == 0:
        raise UserError("sample.perp_neg, sample.cfg=0: expected a scale above 0, where the prompt has a say")


def sampler_of(prior: Prior, settings: SampleConfig) -> str:
    """The sampler that is meant: the folder's own where none is named, ddim where eta is."""
    return _named(settings) or prior.pipeline.sampler


def _named(settings: SampleConfig) -> str:
    return settings.sampler if settings.sampler != "auto" else "ddim" if settings.eta > 0 else ""


def grid_of(prior: Prior, settings: SampleConfig) -> Grid:
    """The stops from noise to 0. By default those of diffusers' pipeline of the prior's folder, even ones for flows
    without one; for samplers of order 2 those of Karras. UserError for what does not fit the prior's path."""
    table, law, sampler = prior.schedule.table, settings.spacing, sampler_of(prior, settings)
    if sampler == "ddpm" and table is None:
        raise UserError(
            f"sample.sampler=ddpm: {prior.name} is a flow, which has no table of betas; "
            "sampler=ddim eta=1 is the same with noise on its path"
        )
    if sampler == "ddpm" and law in NOISE_LAWS:
        raise UserError(f"sample.spacing={law}: sampler=ddpm walks on the entries of its table, expected leading or so")
    if table is None and law in ("leading", "trailing", "linspace", "quad"):
        raise UserError(f"sample.spacing={law}: {prior.name} is a flow, expected even or flow_match")
    if table is not None and (law in ("even", "flow_match") or settings.shift is not None):
        given = f"sample.spacing={law}" if settings.shift is None else f"sample.shift={settings.shift:g}"
        raise UserError(f"{given}: {prior.name} has a table of betas, expected leading, trailing or quad and no shift")
    try:
        return prior.pipeline.times(
            settings.steps, sampler=sampler, law=law, shift=settings.shift, offset=settings.offset
        )
    except PriorError as error:
        raise UserError(str(error)) from None
    except ValueError as error:
        raise UserError(f"sample.steps={settings.steps}: {error}") from None


def field_of(
    prior: Prior, prompt: str, settings: SampleConfig, *, negative_prompt: str, corrector: Corrector | None
) -> Field:
    """The guided field of one prompt; embeds the texts."""
    if negative_prompt and settings.cfg == 1 and not settings.perp_neg:
        LOG.info("the negative prompt has no effect at sample.cfg=1")
    texts = [prompt, "", negative_prompt] if settings.perp_neg else [prompt, negative_prompt]
    found = prior.embed(texts)
    tell(prior, lambda: found, "sample")
    roles = ("cond", "uncond", "negative")[: len(texts)]
    low, high = settings.guidance_interval
    return bind(prior, {role: found.select([i]) for i, role in enumerate(roles)}).field(
        settings.cfg,
        interval=(low, high),
        rescaled=settings.rescale,
        lengths=None if settings.rescale or settings.perp_neg else prior.pipeline.lengths,
        negatives={"negative": settings.perp_neg} if settings.perp_neg else None,
        corrector=corrector,
    )


def plan(
    prior: Prior,
    prompt: str,
    settings: SampleConfig,
    *,
    negative_prompt: str = "",
    seed: int = 0,
    device: torch.device | str = "cpu",
    image: Tensor | None = None,
    mask: Tensor | None = None,
    corrector: Corrector | None = None,
) -> Plan:
    """Everything before the first step. `image` (3, H, W) in [0, 1] of any size, `mask` (1 or 3, H, W) of the same.

    With an image, strength of the steps are done, rounded as diffusers' pipelines do; with a mask and strength 1 the
    start is noise alone. UserError for what does not fit the prior or each other.
    """
    device = torch.device(device)
    rule, grid = rule_of(settings, sampler_of(prior, settings)), grid_of(prior, settings)
    strength = settings.strength or (1.0 if mask is not None else 0.8)
    if image is not None:
        try:
            grid = replace(grid, times=from_strength(grid.times, strength, up=prior.schedule.table is None))
        except ValueError as error:
            raise UserError(f"sample.strength={strength:g}: {error}") from None
    if rule.sampler == "ddpm" and len(grid.times) < 3:
        raise UserError("sample.sampler=ddpm: expected at least two steps")
    if sampler_of(prior, settings) == prior.pipeline.sampler and settings.spacing == "auto":
        for note in prior.pipeline.notes(settings.steps):
            LOG.info("%s", note)
    asked = prior if grid.whole else prior.between()
    field = field_of(asked, prompt, settings, negative_prompt=negative_prompt, corrector=corrector)
    field = grid.along(field)
    if image is None:
        return Plan(prior, field, grid, rule, seed, device)
    known, hidden = encoded(prior, image, mask, device)
    return Plan(prior, field, grid, rule, seed, device, known, hidden, pure=mask is not None and strength == 1)


@torch.no_grad()
def encoded(prior: Prior, image: Tensor, mask: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Latents (1, C, h, w) of an image fitted to the prior's size, and its mask there (1, 1, h, w), 0 or 1."""
    size = picture_size(prior, device)
    known = prior.encode(fitted(image.float(), size, "sample.image").to(device))
    return known, None if mask is None else hidden_part(mask, image, size, known, "sample")


@torch.no_grad()
def picture_size(prior: Prior, device: torch.device | str) -> tuple[int, int]:
    """Height and width of the prior's pictures at its native size."""
    height, width = prior.decode(torch.zeros(1, *prior.latent_shape, device=device)).shape[-2:]
    return height, width


@torch.no_grad()
def run(plan: Plan, numbers: Sequence[int], *, latents: Tensor | None = None) -> Iterator[State]:
    """The states of the pictures of these numbers, each of which depends on the seed and its own number only.

    `latents` (B, C, h, w) are the start instead of the seed's noise. With repeat_noise the fresh noise is the seed's
    own, for all pictures.
    """
    eps = torch.cat([normal((1, *plan.prior.latent_shape), generator(plan.seed, i, "sample")) for i in numbers])
    x = eps = (plan.grid.start * eps if latents is None else latents).to(plan.device)
    draws: Draws = [generator(plan.seed, i, "fresh") for i in numbers]
    if plan.rule.repeat_noise:
        draws = generator(plan.seed, 0, "shared")
    schedule, after = plan.field.schedule, None
    if plan.known is not None:
        known = plan.known.expand_as(eps)
        x = x if plan.pure else noise(known, eps, schedule(plan.times[:1].to(x.device).expand(len(x))))
        after = None if plan.mask is None else keep(known, eps, plan.mask, schedule=schedule)
    yield from states(plan.field, x, plan.times, rule=plan.rule, generator=draws, after=after)
