"""Solvers as generators of states: falling times sample, rising times invert.

The field returns the prediction p (B, ...) of `kind` at x (B, ...) and t (B,). `times` is (S + 1,), shared by the
batch, or (S + 1, B). A step goes from each time to the next, so S states are yielded, the last one at times[-1]. At
t = 0 of a straight path or a clean table the level is alpha = 1, sigma = 0 and the last step is exact.

`limit` maps the x0_hat of every prediction (`ddpm.clip`, a quantiser, ...); eps_hat stays that of the prediction, as in
LDM and diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, noise, split
from threestudio_rf.core.level import Level, Schedule, column
from threestudio_rf.core.random import Draws, normal, uniform

Field = Callable[[Tensor, Tensor], Tensor]
Map = Callable[[Tensor], Tensor]


def solve(
    field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind, limit: Map | None = None
) -> Iterator[Tensor]:
    """The first-order step: DDIM (Song et al. 2021) on a variance-preserving path, Euler on the straight one."""
    for t, t_next in _steps(times, x):
        x = noise(*_hats(kind, field(x, t), x, schedule(t), limit), schedule(t_next))
        yield x


def midpoint(
    field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind, limit: Map | None = None
) -> Iterator[Tensor]:
    """The explicit midpoint rule, order 2, two calls per step; on the straight path it is RF-Solver's second order.

    On other paths it is the same rule behind the bridge to the straight one, where every path moves with velocity
    eps_hat - x0_hat.
    """
    for t, t_next in _steps(times, x):
        t_half = (t + t_next) / 2
        now, half = schedule(t), schedule(t_half)
        x_half = noise(*_hats(kind, field(x, t), x, now, limit), half)
        velocity = join("flow", *_hats(kind, field(x_half, t_half), x_half, half, limit), half)
        x = noise(*split("flow", velocity, x, now), schedule(t_next))
        yield x


def heun(
    field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind, limit: Map | None = None
) -> Iterator[Tensor]:
    """Heun's rule, order 2, two calls per step: the mean of the velocities at both ends of an Euler step.

    As in Karras et al. 2022 a step to t = 0 is Euler's, so no network is asked about clean data. Other paths are
    behind the bridge to the straight one, see `midpoint`.
    """
    for t, t_next in _steps(times, x):
        now, after = schedule(t), schedule(t_next)
        hats = _hats(kind, field(x, t), x, now, limit)
        euler = noise(*hats, after)
        if bool((t_next == 0).all()):
            x = euler
        else:
            second = join("flow", *_hats(kind, field(euler, t_next), euler, after, limit), after)
            velocity = (join("flow", *hats, now) + second) / 2
            x = torch.where(column(t_next, x) > 0, noise(*split("flow", velocity, x, now), after), euler)
        yield x


def ancestral(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    kind: Kind,
    eta: float,
    generator: Draws,
    limit: Map | None = None,
    temperature: float = 1.0,
    repeat_noise: bool = False,
    noise_dropout: float = 0.0,
) -> Iterator[Tensor]:
    """DDIM with noise (Song et al. 2021, eq. 12, 16): eta = 0 is `solve`, eta = 1 on all N steps is DDPM.

    Temperature and the like as in `fresh`. Raises ValueError when times rise while eta > 0, or when eta is outside
    [0, 1].
    """
    for t, t_next in _steps(times, x):
        now, after = schedule(t.double()), schedule(t_next.double())
        kick = fresh_noise(now, after, eta=eta)
        kept = Level(after.alpha, (after.sigma**2 - kick**2).clamp(min=0).sqrt())
        mean = noise(*_hats(kind, field(x, t), x, now, limit), kept)
        z = fresh(x, generator, temperature=temperature, repeat_noise=repeat_noise, noise_dropout=noise_dropout)
        x = noise(mean, z, Level(torch.ones_like(kick), kick))
        yield x


def fresh(
    x: Tensor, generator: Draws, *, temperature: float = 1.0, repeat_noise: bool = False, noise_dropout: float = 0.0
) -> Tensor:
    """The noise (B, ...) of one step, in the dtype and on the device of x (B, ...).

    `repeat_noise` shares it within the batch (it is the first of several generators that draws it), `temperature`
    scales it, `noise_dropout` zeroes that share of it and scales the rest by 1 / (1 - share).
    """
    shape = (1, *x.shape[1:]) if repeat_noise else x.shape
    if repeat_noise and isinstance(generator, Sequence):
        generator = generator[0]
    z = normal(shape, generator, device=x.device, dtype=x.dtype)
    if noise_dropout > 0:
        z = z * (uniform(shape, generator, device=x.device) >= noise_dropout) / (1 - noise_dropout)
    return (temperature * z).expand(x.shape)


def fresh_noise(now: Level, after: Level, *, eta: float) -> Tensor:
    """The standard deviation (B,) of the noise that a step from `now` to the cleaner `after` replaces.

    eta times the deviation of q(x_s | x_t, x0) for any Gaussian path: sigma_s / sigma_t sqrt(sigma_t^2 -
    (alpha_t sigma_s / alpha_s)^2); with alpha^2 + sigma^2 = 1 this is DDIM's eq. 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta {eta}, expected 0..1")
    if eta == 0:
        return torch.zeros_like(after.sigma)
    falls = (after.sigma * now.alpha <= now.sigma * after.alpha) & (after.alpha > 0) & (now.sigma > 0)
    if not bool(falls.all()):
        raise ValueError(f"got a step from sigma {now.sigma} to {after.sigma}, expected falling times when eta > 0")
    added = now.sigma**2 - (now.alpha * after.sigma / after.alpha) ** 2
    return eta * after.sigma / now.sigma * added.clamp(min=0).sqrt()


def _hats(kind: Kind, p: Tensor, x: Tensor, level: Level, limit: Map | None) -> tuple[Tensor, Tensor]:
    x0_hat, eps_hat = split(kind, p, x, level)
    return x0_hat if limit is None else limit(x0_hat), eps_hat


def _steps(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of neighbouring times, each (B,); ValueError when `times` fits neither (S + 1,) nor (S + 1, B)."""
    if times.ndim not in (1, 2) or len(times) < 2 or (times.ndim == 2 and times.shape[1] != len(x)):
        raise ValueError(f"got times {tuple(times.shape)}, expected (S + 1,) or (S + 1, {len(x)}) with S at least 1")
    grid = times.to(x.device).reshape(len(times), -1).expand(-1, len(x))
    return pairwise(grid)
