"""Solvers as generators of states: falling times sample, rising times invert.

The field returns the prediction p (B, ...) of `kind` at x (B, ...) and t (B,). `times` is (S + 1,), shared by the
batch, or (S + 1, B). A step goes from each time to the next, so S states are yielded, the last one at times[-1]. At
t = 0 of a straight path or a clean table the level is alpha = 1, sigma = 0 and the last step is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, join, noise, split
from threestudio_rf.core.level import Level, Schedule
from threestudio_rf.core.random import normal

Field = Callable[[Tensor, Tensor], Tensor]


def solve(field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind) -> Iterator[Tensor]:
    """The first-order step: DDIM (Song et al. 2021) on a variance-preserving path, Euler on the straight one."""
    for t, t_next in _steps(times, x):
        x = noise(*split(kind, field(x, t), x, schedule(t)), schedule(t_next))
        yield x


def midpoint(field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind) -> Iterator[Tensor]:
    """The explicit midpoint rule, order 2, two calls per step; on the straight path it is RF-Solver's second order.

    On other paths it is the same rule behind the bridge to the straight one, where every path moves with velocity
    eps_hat - x0_hat.
    """
    for t, t_next in _steps(times, x):
        t_half = (t + t_next) / 2
        now, half = schedule(t), schedule(t_half)
        x_half = noise(*split(kind, field(x, t), x, now), half)
        velocity = join("flow", *split(kind, field(x_half, t_half), x_half, half), half)
        x = noise(*split("flow", velocity, x, now), schedule(t_next))
        yield x


def ancestral(
    field: Field, x: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind, eta: float, generator: Generator
) -> Iterator[Tensor]:
    """DDIM with noise (Song et al. 2021, eq. 12, 16): eta = 0 is `solve`, eta = 1 on all N steps is DDPM.

    Raises ValueError when times rise while eta > 0, or when eta is outside [0, 1].
    """
    for t, t_next in _steps(times, x):
        now, after = schedule(t.double()), schedule(t_next.double())
        kick = fresh_noise(now, after, eta=eta)
        kept = Level(after.alpha, (after.sigma**2 - kick**2).clamp(min=0).sqrt())
        mean = noise(*split(kind, field(x, t), x, now), kept)
        z = normal(x.shape, generator, device=x.device, dtype=x.dtype)
        x = noise(mean, z, Level(torch.ones_like(kick), kick))
        yield x


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


def _steps(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of neighbouring times, each (B,); ValueError when `times` fits neither (S + 1,) nor (S + 1, B)."""
    if times.ndim not in (1, 2) or len(times) < 2 or (times.ndim == 2 and times.shape[1] != len(x)):
        raise ValueError(f"got times {tuple(times.shape)}, expected (S + 1,) or (S + 1, {len(x)}) with S at least 1")
    grid = times.to(x.device).reshape(len(times), -1).expand(-1, len(x))
    return pairwise(grid)
