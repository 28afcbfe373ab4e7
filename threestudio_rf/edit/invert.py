"""From a picture to its noise along the prior's ODE, and back, by any solver without noise.

Everything here is on the straight path of a `Path`: x (B, ...) at t' with velocity u_hat.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from threestudio_rf.core.model import Field
from threestudio_rf.core.random import Draws, normal
from threestudio_rf.core.sample import After, State, states
from threestudio_rf.core.solve import QUIET, Rule
from threestudio_rf.edit.path import SOURCE, Path
from threestudio_rf.edit.steer import pull, pulled_to_noise, pulled_to_picture, stochastic


@dataclass(frozen=True)
class Ode:
    """Invert with the source prompt, sample with the target prompt, both in `steps` steps of `solver`.

    t_start  the noise level t' to invert to; None: the prior's noisiest
    shift    the resolution shift of the steps; None: the prior's own
    scale, scale_source  guidance down and up
    gamma    RF-Inversion: pull towards one Gaussian sample on the way up
    eta      RF-Inversion: pull towards the picture on the way down, in the share start..stop of the steps; step i of S
             has eta (1 - i / S)^eta_decay
    sde      RF-Inversion: the way down draws noise (`steer.stochastic`)

    ValueError for an unknown solver, gamma with Heun's rule, which asks at pure noise, or sde without Euler's.
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
    eta_decay: float = 0.0
    sde: bool = False

    def __post_init__(self) -> None:
        if self.solver not in QUIET:
            raise ValueError(f"got solver {self.solver!r}, expected one of {', '.join(QUIET)}")
        if self.gamma and self.solver == "heun":
            raise ValueError("got gamma with solver heun, expected another solver: Heun's rule asks at pure noise")
        if self.sde and self.solver != "euler":
            raise ValueError(f"got sde with solver {self.solver}, expected euler: the noisy way down has its own step")

    def faithful(self) -> Ode:
        """The settings of a reconstruction: down as up."""
        return replace(self, scale=self.scale_source)


def travel(
    field: Field, x: Tensor, times: Tensor, *, solver: str = "euler", after: After | None = None
) -> Iterator[State]:
    """The states along `times` (S + 1,): rising ones invert, falling ones sample. `after` changes x behind a step."""
    return states(field, x, times, rule=Rule(solver), after=after)


def up(path: Path, x0: Tensor, times: Tensor, settings: Ode, *, generator: Draws) -> Iterator[State]:
    """The states from the picture x0 (B, C, h, w) up the falling `times` reversed, with the source prompt."""
    field = path.velocity(SOURCE, settings.scale_source)
    if settings.gamma:
        eps = normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)
        field = pulled_to_noise(field, eps, settings.gamma)
    return travel(field, x0, times.flip(0), solver=settings.solver)


def down(
    path: Path,
    x: Tensor,
    x0: Tensor,
    times: Tensor,
    settings: Ode,
    *,
    role: str,
    after: After | None = None,
    generator: Draws | None = None,
) -> Iterator[State]:
    """The states from noisy x (B, C, h, w) along falling `times` with the prompt of `role`; ValueError for sde without
    a generator."""
    field = path.velocity(role, settings.scale)
    if settings.eta:
        eta = pull(times, settings.eta, start=settings.start, stop=settings.stop, decay=settings.eta_decay)
        field = pulled_to_picture(field, x0, eta)
    if settings.sde:
        if generator is None:
            raise ValueError("got no generator, expected one for the noise of sde")
        return stochastic(field, x, times, generator=generator, after=after)
    return travel(field, x, times, solver=settings.solver, after=after)
