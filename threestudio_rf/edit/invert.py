"""From a picture to its noise along the prior's ODE, and back: Euler, midpoint, Heun and FireFlow.

Everything here is on the straight path of a `Path`: x (B, ...) at t' with velocity u_hat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

from torch import Tensor

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.ddpm import After
from threestudio_rf.core.level import Schedule
from threestudio_rf.core.random import Draws, normal
from threestudio_rf.core.sample import Rule, Sampler, State, states
from threestudio_rf.core.solve import Field
from threestudio_rf.edit.path import SOURCE, Path
from threestudio_rf.edit.steer import pulled_to_noise, pulled_to_picture

SOLVERS = ("euler", "midpoint", "heun", "fireflow")


@dataclass(frozen=True)
class Ode:
    """Invert with the source prompt, sample with the target prompt, both in `steps` steps of `solver`.

    t_start  the noise level t' to invert to; None: the prior's noisiest
    shift    the resolution shift of the steps; None: the prior's own
    scale, scale_source  guidance down and up
    gamma    RF-Inversion: pull towards one Gaussian sample on the way up
    eta      RF-Inversion: pull towards the picture on the way down, in the share start..stop of the steps

    ValueError for an unknown solver, or gamma with Heun's rule, which asks at pure noise.
    """

    solver: str = "euler"
    steps: int = 28
    t_start: float | None = None
    shift: float | None = None
    scale: float = 3.5
    scale_source: float = 1.0
    gamma: float = 0.0
    eta: float = 0.0
    start: float = 0.0
    stop: float = 0.25

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"got solver {self.solver!r}, expected one of {', '.join(SOLVERS)}")
        if self.gamma and self.solver == "heun":
            raise ValueError("got gamma with solver heun, expected another solver: Heun's rule asks at pure noise")

    def faithful(self) -> Ode:
        """The settings of a reconstruction: down as up."""
        return replace(self, scale=self.scale_source)


def fireflow(field: Field, x: Tensor, times: Tensor, *, level: Schedule, after: After | None = None) -> Iterator[State]:
    """FireFlow (Deng et al. 2024, arXiv 2412.07517): the midpoint rule whose half step reuses the last midpoint
    velocity, so that a step costs one call, the first one two. Order 2. `times` (S + 1,) may rise or fall."""
    m: Tensor | None = None
    grid = times.to(x.device)[:, None].expand(-1, len(x))
    for number, (t, t_next) in enumerate(pairwise(grid), 1):
        t_half = (t + t_next) / 2
        m = field(x, t) if m is None else m
        x_half = noise(*split("flow", m, x, level(t)), level(t_half))
        m = field(x_half, t_half)
        x0_hat, eps_hat = split("flow", m, x, level(t))
        x = noise(x0_hat, eps_hat, level(t_next))
        x = x if after is None else after(x, t_next)
        yield State(len(times) - 1 - number, t_next, x, x0_hat)


def travel(
    field: Field, x: Tensor, times: Tensor, *, level: Schedule, solver: str = "euler", after: After | None = None
) -> Iterator[State]:
    """The states along `times` (S + 1,): rising ones invert, falling ones sample. `after` changes x behind a step."""
    if solver == "fireflow":
        return fireflow(field, x, times, level=level, after=after)
    return states(field, x, times, schedule=level, kind="flow", rule=Rule(cast(Sampler, solver)), after=after)


def up(path: Path, x0: Tensor, times: Tensor, settings: Ode, *, generator: Draws) -> Iterator[State]:
    """The states from the picture x0 (B, C, h, w) up the falling `times` reversed, with the source prompt."""
    field = path.velocity(SOURCE, settings.scale_source)
    if settings.gamma:
        eps = normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)
        field = pulled_to_noise(field, eps, settings.gamma, level=path.level)
    return travel(field, x0, times.flip(0), level=path.level, solver=settings.solver)


def down(
    path: Path, x: Tensor, x0: Tensor, times: Tensor, settings: Ode, *, role: str, after: After | None = None
) -> Iterator[State]:
    """The states from noisy x (B, C, h, w) along falling `times` with the prompt of `role`."""
    field = path.velocity(role, settings.scale)
    if settings.eta:
        first, last = (times[round(share * (len(times) - 1))] for share in (settings.start, settings.stop))
        window = (float(last), float(first))
        field = pulled_to_picture(field, x0, settings.eta, level=path.level, window=window)
    return travel(field, x, times, level=path.level, solver=settings.solver, after=after)
