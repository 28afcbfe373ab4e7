"""One reflow (Liu et al. 2022, Flow Straight and Fast): a flow trained again on its own noise-image pairs.

The coupling (eps, x0) that the flow's own ODE makes replaces the independent one; the paths of the new flow cross less
and so are straighter, and one Euler step comes closer to the sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.guide import cfg, combine
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.core.times import spacing
from threestudio_rf.tiny.train.data.captions import TEMPLATES
from threestudio_rf.tiny.train.data.latents import Latents
from threestudio_rf.tiny.train.training import device_of
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, WORDINGS

Velocity = Callable[[Tensor, Tensor], Tensor]


class Flow(NamedTuple):
    """A trained UNet flow in InstaFlow's convention with its text encoder and caption table."""

    unet: Any
    encoder: Any
    table: Any

    def velocity(self, captions: Tensor, scale: float) -> Velocity:
        """u_hat = eps - x0 under guidance `scale` for caption indices (B, 3) of shape, colour and wording."""
        shape, colour, wording = captions.unbind(1)
        template = torch.zeros_like(shape)
        empty = torch.full_like(shape, len(TEMPLATES) - 1)
        weights = cfg(scale)
        words = {"cond": template, "uncond": empty}
        ids = torch.cat([self.table[words[role], shape, colour, wording] for role in weights])
        hidden = self.encoder(ids.to(device_of(self.encoder))).last_hidden_state

        def field(x: Tensor, t: Tensor) -> Tensor:
            times = len(weights)
            out = -self.unet(x.repeat(times, 1, 1, 1), 1000 * t.repeat(times), hidden).sample
            return combine(dict(zip(weights, out.split(len(x)), strict=True)), weights)

        return field


class Trajectory(NamedTuple):
    """Start (B, C, h, w) at t = 1, end at t = 0, and |eps - x0 - u_hat|^2 per element (B,), averaged over the steps."""

    noise: Tensor
    sample: Tensor
    straightness: Tensor


@torch.no_grad()
def follow(velocity: Velocity, noise: Tensor, steps: int) -> Trajectory:
    """Euler from t = 1 to 0. Straightness is the S of the paper, 0 for straight paths, per element of the latent."""
    seen: list[Tensor] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        seen.append(velocity(x, t))
        return seen[-1]

    *_, sample = solve(Field(field, "flow", rectified_flow), noise, spacing(steps))
    chord = noise - sample
    bend = torch.stack([(chord - u).square().flatten(1).mean(1) for u in seen])
    return Trajectory(noise, sample, bend.mean(0))


def captions_of(rounds: int) -> Tensor:
    """Every (shape, colour, wording of the view) `rounds` times, (5600 rounds, 3)."""
    axes = (torch.arange(len(SHAPES)), torch.arange(len(COLOURS)), torch.arange(len(WORDINGS)))
    return torch.cartesian_prod(*axes).repeat(rounds, 1)


def make_pairs(
    flow: Flow, shape: tuple[int, int, int], *, rounds: int, steps: int, scale: float, seed: int, batch: int = 240
) -> tuple[Latents, Tensor]:
    """Samples of every caption `rounds` times as `Latents`, and the noise (N, C, h, w) each was made from."""
    captions = captions_of(rounds)
    samples, noises = [], []
    for number, rows in enumerate(captions.split(batch)):
        start = normal((len(rows), *shape), generator(seed, number, "reflow"), device=device_of(flow.unet))
        end = follow(flow.velocity(rows, scale), start, steps).sample
        samples.append(end.half().cpu())
        noises.append(start.half().cpu())
    shapes, colours, wording = (column.contiguous() for column in captions.unbind(1))
    alone = torch.arange(len(shapes))
    return Latents(torch.cat(samples), shapes, colours, wording, wording - len(VIEW_WORDS), alone), torch.cat(noises)
