"""Noise sources: which x_t the prior is asked about, and the eps that its prediction is compared with.

For all of them but "ism" and "trace", x_t = alpha x0 + sigma eps. A source is a function of (x0, t, model), the options
of a `Method` and a generator; `SOURCES` holds them by name.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import Level, column
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import Part, normal, uniform
from threestudio_rf.core.solve import first_order, fresh_noise

BRIDGE = 1000
"""Entries of the bridge's table."""


class Noised(NamedTuple):
    """x_t and eps, both (B, C, h, w)."""

    x_t: Tensor
    eps: Tensor


def random_noise(x0: Tensor, *, generator: Generator | Part) -> Tensor:
    """eps ~ N(0, I), drawn on the CPU, in x0's shape, device and dtype."""
    return normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)


def rev_noise(
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    model: Model,
    *,
    step: float | None = None,
    steps: int = 1,
) -> Tensor:
    """RFDS-Rev (arXiv 2406.03293): `steps` times eps := eps + k (u_hat + x0 - eps), u_hat with the prompt only.

    `step` is k; None means alpha/(alpha + sigma), which is 1 - t on the straight path and gives eps_hat exactly: the
    model's conditional mean of eps given x_t, no longer a sample of N(0, I).
    """
    level = model.schedule(t)
    alpha, sigma = level.like(x0)
    k = alpha / (alpha + sigma) if step is None else step
    for _ in range(steps):
        x0_hat, eps_hat = model.hats(noise(x0, eps, level), t, ["cond"])["cond"]
        eps = eps + k * (eps_hat - x0_hat + x0 - eps)
    return eps


def rising(t: Tensor, steps: int) -> Tensor:
    """(S + 1, B) times from 0 to t (B,): max(1, int(steps t)) even steps per sample, which then waits for the others.

    `steps` is the number from 0 to 1. A sample's times do not depend on the batch.
    """
    counts = (steps * t.double() + 1e-6).floor().clamp(min=1)
    order = torch.arange(int(counts.max()) + 1, device=t.device)[:, None]
    return (order / counts).clamp(max=1).to(t) * t


def inverted(
    x0: Tensor, t: Tensor, model: Model, *, steps: int, scale: float, eta: float = 0.0, generator: Generator | Part
) -> Tensor:
    """DDIM inversion of x0 (B, C, h, w) from 0 to t (B,) along `rising` times; Euler's rule on the straight path.

    `eta` adds that share of DDIM's posterior deviation after every step, as threestudio's SDI (arXiv 2405.15891) does.
    """
    field, x = model.field(scale), x0
    for now, after in pairwise(rising(t, steps)):
        x = first_order(field, x, now, after).x
        if eta > 0:
            kick = fresh_noise(model.schedule(after), model.schedule(now), eta=eta)
            x = x + column(kick, x) * normal(x.shape, generator, device=x.device, dtype=x.dtype)
    return x


def implied(x0: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """The eps that brings x0 to x_t: (x_t - alpha x0) / sigma."""
    alpha, sigma = level.like(x0)
    return (x_t - alpha * x0) / sigma


class Numbers(Protocol):
    """The numbers of a `Method` that noise sources read."""

    @property
    def invert_eta(self) -> float:
        """Share of fresh noise in the inversion."""

    @property
    def invert_scale(self) -> float:
        """Guidance scale of the inversion."""

    @property
    def invert_steps(self) -> int:
        """Steps of the inversion from t = 0 to 1."""

    @property
    def ism_delta(self) -> float:
        """From the time before to t, of interval score matching."""

    @property
    def rev_step(self) -> float | None:
        """Step k of reversed noise; None: 1 - t."""

    @property
    def rev_steps(self) -> int:
        """How many of these steps are taken."""

    @property
    def scale(self) -> float:
        """Guidance scale of the estimate that a bridge leads to."""

    @property
    def trace_t(self) -> tuple[float, float]:
        """Window of the time of that estimate."""


class Source(Protocol):
    """x0 (B, C, h, w), t (B,) -> x_t and eps."""

    def __call__(
        self, x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part
    ) -> Noised: ...


def _random(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    eps = random_noise(x0, generator=generator)
    return Noised(noise(x0, eps, model.schedule(t)), eps)


def _rev(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    eps = random_noise(x0, generator=generator)
    eps = rev_noise(x0, eps, t, model, step=method.rev_step, steps=method.rev_steps)
    return Noised(noise(x0, eps, model.schedule(t)), eps)


def _inverted(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    """SDI (arXiv 2405.15891): the noise of x0 is what DDIM inversion up to t finds."""
    steps, scale, eta = method.invert_steps, method.invert_scale, method.invert_eta
    x_t = inverted(x0, t, model, steps=steps, scale=scale, eta=eta, generator=generator)
    return Noised(x_t, implied(x0, x_t, model.schedule(t)))


def _push_back(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    """UCM (FlowDreamer, arXiv 2408.05008): x0 pushed back to t = 1 is its noise, on the straight path as it is."""
    steps, scale, eta, end = method.invert_steps, method.invert_scale, method.invert_eta, torch.ones_like(t)
    x_1 = inverted(x0, end, model, steps=steps, scale=scale, eta=eta, generator=generator)
    eps = implied(x0, x_1, model.schedule(end))
    return Noised(noise(x0, eps, model.schedule(t)), eps)


def _ism(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    """ISM (LucidDreamer, arXiv 2311.11284): 0 -> s = t - delta -> t by inversion; eps is eps_uncond(x_s), and x_t is
    not noise(x0, eps)."""
    steps, scale, eta = method.invert_steps, method.invert_scale, method.invert_eta
    s = (t - method.ism_delta).clamp(min=0)
    x_s = inverted(x0, s, model, steps=steps, scale=scale, eta=eta, generator=generator)
    x0_hat, eps_hat = model.field(0.0).hats(x_s, s)
    return Noised(noise(x0_hat, eps_hat, model.schedule(t)), eps_hat)


class BridgeLevel(NamedTuple):
    """A point of a bridge, x_t = aim x_aim + start x_start + spread noise, and its deviation from x_aim alone, each
    (B,)."""

    aim: Tensor
    start: Tensor
    spread: Tensor
    deviation: Tensor


def bridge_level(t: Tensor) -> BridgeLevel:
    """TraCe's Schroedinger bridge at t (B,): entry round(1000 t) - 1 of I2SB's (Liu et al. 2023, equation 11), whose
    betas rise from 1e-4 to half of the way to 3e-4, their roots evenly, and fall again."""
    rise = torch.linspace(1e-4**0.5, 3e-4**0.5, BRIDGE, dtype=torch.float64, device=t.device)[: BRIDGE // 2] ** 2
    variances = torch.cat([rise, rise.flip(0)])
    k = (BRIDGE * t.double()).round().long().sub(1).clamp(0, BRIDGE - 1)
    to_aim, to_start = variances.cumsum(0)[k], variances.flip(0).cumsum(0).flip(0)[k]
    whole = to_aim + to_start
    found = (to_start / whole, to_aim / whole, (to_aim * to_start / whole).sqrt(), to_aim.sqrt())
    return BridgeLevel(*(x.to(t.dtype) for x in found))


def _trace(x0: Tensor, t: Tensor, model: Model, *, method: Numbers, generator: Generator | Part) -> Noised:
    """TraCe (arXiv 2511.05609): x_t lies on the bridge between x0 and what the guided prior makes of it at another
    time, uniform in `trace_t`; eps = (x_t - that) / deviation, and x_t is not noise(x0, eps)."""
    low, high = method.trace_t
    s = low + (high - low) * uniform((len(x0),), generator, device=x0.device, dtype=t.dtype)
    x_s = noise(x0, random_noise(x0, generator=generator), model.schedule(s))
    aim = model.field(method.scale).hats(x_s, s).x0.to(x0)
    level = bridge_level(t)
    x_t = column(level.aim, x0) * aim + column(level.start, x0) * x0
    x_t = x_t + column(level.spread, x0) * random_noise(x0, generator=generator)
    return Noised(x_t, (x_t - aim) / column(level.deviation, x0))


SOURCES: dict[str, Source] = {
    "random": _random,
    "rev": _rev,
    "push_back": _push_back,
    "inverted": _inverted,
    "ism": _ism,
    "trace": _trace,
}
