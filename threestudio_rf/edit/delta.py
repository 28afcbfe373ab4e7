"""Editing without inversion: differences of the target's and the source's velocity under the same noise.

One loop serves FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), DDS (Hertz et al. 2023, arXiv 2304.07090) in flow
space and DRFS (arXiv 2509.05342). With e ~ N(0, I) and a drift c(t'):

    x_s = (1 - t') x_src + t' e
    x_g = (1 - t') x + t' e + c (x - x_src)
    g   = u_target(x_g) - u_source(x_s) + (1 - dc/dt') (x - x_src)
    x  -= rate |h| g

c = 0 is DDS; c = t' with rate 1 is FlowEdit, whose x_g is x + x_s - x_src.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import Level, column
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import Draws, normal, uniform
from threestudio_rf.core.sample import State
from threestudio_rf.edit.path import SOURCE, Path

Drift = Callable[[Tensor], tuple[Tensor, Tensor]]
DRIFTS: dict[str, Drift] = {
    "none": lambda t: (torch.zeros_like(t), torch.zeros_like(t)),
    "linear": lambda t: (t, torch.ones_like(t)),
    "parabola": lambda t: (t * (1 - t), 1 - 2 * t),
}
"""name -> t' -> (c, dc/dt')."""
LAWS = ("falling", "uniform")


@dataclass(frozen=True)
class Delta:
    """One method of differences.

    t_start  the noise level t' where it begins, None: the prior's noisiest; t_min the lowest one of law "uniform"
    law      "falling": t' falls over the steps and |h| is its fall; "uniform": drawn in t_min..t_start, |h| = 1 / steps
    drift    c, one of `DRIFTS`
    rate     factor of the step
    draws    noises per step, whose g are averaged
    scale, scale_source  guidance of both branches
    shift    the resolution shift of falling steps; None: the prior's own

    ValueError for an unknown law or drift.
    """

    steps: int = 33
    t_start: float | None = None
    t_min: float = 0.02
    law: str = "falling"
    drift: str = "linear"
    rate: float = 1.0
    draws: int = 1
    scale: float = 13.5
    scale_source: float = 3.5
    shift: float | None = None

    def __post_init__(self) -> None:
        if self.law not in LAWS or self.drift not in DRIFTS:
            expected = f"{', '.join(LAWS)}; {', '.join(DRIFTS)}"
            raise ValueError(f"got law {self.law!r} and drift {self.drift!r}, expected one of {expected}")

    def faithful(self) -> Delta:
        """The settings of a reconstruction: both branches alike."""
        return replace(self, scale=self.scale_source)


def difference(
    target: Field, source: Field, x: Tensor, x_src: Tensor, eps: Tensor, t: Tensor, level: Level, *, drift: Drift
) -> Tensor:
    """g (B, ...) of the module's head at the prior's t (B,), where the level is (1 - t', t')."""
    c, slope = (column(value, x) for value in drift(level.sigma))
    x_g = noise(x, eps, level) + c * (x - x_src)
    return target(x_g, t) - source(noise(x_src, eps, level), t) + (1 - slope) * (x - x_src)


def plan(path: Path, times: Tensor, settings: Delta, n: int, generator: Draws) -> Iterator[tuple[Tensor, Tensor]]:
    """(t, |h|) of every step, each (n,): along falling `times` (S + 1,), or drawn below the level of the first."""
    if settings.law == "falling":
        for t, t_next in pairwise(times[:, None].expand(-1, n)):
            yield t, path.level(t).sigma - path.level(t_next).sigma
        return
    top = path.level(times[:1]).sigma
    for _ in range(settings.steps):
        straight = torch.lerp(torch.full_like(top, settings.t_min), top, uniform((n,), generator).to(top))
        yield path.time(straight), torch.full((n,), 1 / settings.steps)


def change(
    path: Path,
    x_src: Tensor,
    times: Tensor,
    settings: Delta,
    *,
    generator: Draws,
    role: str,
    mask: Tensor | None = None,
) -> Iterator[State]:
    """The states of x from x_src (B, C, h, w), which is a picture at every step; a state's t is where the step asked.
    `mask` (B or 1, 1, h, w) is 1 where x may change."""
    target, source = path.velocity(role, settings.scale), path.velocity(SOURCE, settings.scale_source)
    drift, x = DRIFTS[settings.drift], x_src
    free = 1.0 if mask is None else mask.to(x_src)
    for number, (t, length) in enumerate(plan(path, times, settings, len(x_src), generator), 1):
        t = t.to(x.device)
        level, total = path.level(t), torch.zeros_like(x)
        for _ in range(settings.draws):
            eps = normal(x.shape, generator, device=x.device, dtype=x.dtype)
            total = total + difference(target, source, x, x_src, eps, t, level, drift=drift)
        x = x - free * settings.rate * column(length, x) * total / settings.draws
        yield State(settings.steps - number, t, x, x)
