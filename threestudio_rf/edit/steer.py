"""Steering without a gradient through the network: RF-Inversion's controlled ODE, FlowChef, SDEdit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from threestudio_rf.core.level import column
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import Draws, normal
from threestudio_rf.core.sample import After, State
from threestudio_rf.core.solve import first_order
from threestudio_rf.edit.path import Path


def pulled_to_noise(field: Field, eps: Tensor, gamma: float) -> Field:
    """RF-Inversion up (Rout et al. 2024, arXiv 2410.10792): u + gamma ((eps - x) / (1 - t') - u), for t' < 1.

    gamma = 0 is the plain ODE, gamma = 1 the straight line to eps (B, ...).
    """

    def controlled(x: Tensor, t: Tensor) -> Tensor:
        u, (alpha, _) = field(x, t), field.schedule(t).like(x)
        return u + gamma * ((eps - x) / alpha - u)

    return Field(controlled, "flow", field.schedule)


def pull(times: Tensor, eta: float, *, start: float, stop: float, decay: float = 0.0) -> Callable[[Tensor], Tensor]:
    """eta at times t (B,) of a way down `times` (S + 1,): eta (1 - i / S)^decay in step i of start..stop, shares of the
    steps, 0 in the others."""
    steps = len(times) - 1
    order = torch.arange(steps, dtype=torch.float64)
    inside = (order >= round(start * steps)) & (order < round(stop * steps))
    strength = inside.double() * eta * (1 - order / steps) ** decay

    def at(t: Tensor) -> Tensor:
        step = (times[:-1, None].to(t) >= t).sum(0) - 1
        return strength.to(t)[step.clamp(min=0)]

    return at


def pulled_to_picture(field: Field, x_ref: Tensor, eta: Callable[[Tensor], Tensor]) -> Field:
    """RF-Inversion down: u + eta ((x - x_ref) / t' - u) with eta (B,) of the time t (B,).

    eta = 1 in the last step returns x_ref (B, ...).
    """

    def controlled(x: Tensor, t: Tensor) -> Tensor:
        u, (_, sigma) = field(x, t), field.schedule(t).like(x)
        return u + column(eta(t), x) * ((x - x_ref) / sigma - u)

    return Field(controlled, "flow", field.schedule)


def stochastic(
    field: Field, x: Tensor, times: Tensor, *, generator: Draws, after: After | None = None
) -> Iterator[State]:
    """RF-Inversion's SDE (arXiv 2410.10792, eq. 17) down falling `times` (S + 1,), with h the fall of t':

        x -= h (2 u + x / (1 - t')),  x += sqrt(2 t' / (1 - t') h) z

    It has the marginals of the ODE, x -= h u, which the first step takes, where 1 - t' may be 0, and the last, which
    would leave its noise in the picture.
    """
    steps = len(times) - 1
    grid = times.to(x.device)[:, None].expand(-1, len(x))
    for number, (t, s) in enumerate(pairwise(grid)):
        u, (alpha, sigma) = field(x, t), field.schedule(t).like(x)
        h = sigma - column(field.schedule(s).sigma, x)
        x0_hat = x - sigma * u
        if 0 < number < steps - 1:
            z = normal(x.shape, generator, device=x.device, dtype=x.dtype)
            x = x - h * (2 * u + x / alpha) + (2 * sigma / alpha * h).sqrt() * z
        else:
            x = x - h * u
        x = x if after is None else after(x, s)
        yield State(steps - 1 - number, s, x, x0_hat)


@dataclass(frozen=True)
class Steered:
    """Sample with the target prompt from the picture under random noise of the level `t_start` (None: the noisiest).

    k  FlowChef: how far a step follows the gradient of 1/2 |kept (x0_hat - x_ref)|^2, in the share start..stop of the
       steps; 0 is SDEdit (Meng et al. 2021)
    """

    steps: int = 28
    t_start: float | None = None
    shift: float | None = None
    scale: float = 3.5
    k: float = 0.0
    start: float = 0.0
    stop: float = 1.0

    def faithful(self) -> Steered:
        """The settings of a reconstruction: the same."""
        return self


def chef(
    path: Path,
    x: Tensor,
    x_ref: Tensor,
    times: Tensor,
    settings: Steered,
    *,
    role: str,
    mask: Tensor | None = None,
    after: After | None = None,
) -> Iterator[State]:
    """FlowChef (Patel et al. 2024, arXiv 2412.00100) from noisy x (B, C, h, w) along falling `times` (S + 1,).

    x += h u - k dL/dx0_hat with L = 1/2 |kept (x0_hat - x_ref)|^2; kept is 1 - mask, so `mask` (B or 1, 1, h, w) is 1
    where the picture may change; without one it is 1 everywhere. k = 0 is plain sampling.
    """
    field = path.velocity(role, settings.scale)
    kept = torch.ones_like(x_ref) if mask is None else (1 - mask).to(x_ref).expand_as(x_ref)
    steps = len(times) - 1
    first, last = round(settings.start * steps), round(settings.stop * steps)
    grid = times.to(x.device)[:, None].expand(-1, len(x))
    for number, (t, s) in enumerate(pairwise(grid)):
        taken = first_order(field, x, t, s)
        k = settings.k if first <= number < last else 0.0
        x = taken.x - k * kept * (taken.x0_hat - x_ref)
        x = x if after is None else after(x, s)
        yield State(steps - 1 - number, s, x, taken.x0_hat)
