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
from threestudio_rf.edit.steer import pulled_to_noise, pulled_to_picture


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
        if self.solver not in QUIET:
            raise ValueError(f"got solver {self.solver!r}, expected one of {', '.join(QUIET)}")
        if self.gamma and self.solver == "heun":
            raise ValueError("got gamma with solver heun, expected another solver: Heun's rule asks at pure noise")

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
    path: Path, x: Tensor, x0: Tensor, times: Tensor, settings: Ode, *, role: str, after: After | None = None
) -> Iterator[State]:
    """The states from noisy x (B, C, h, w) along falling `times` with the prompt of `role`."""
    field = path.velocity(role, settings.scale)
    if settings.eta:
        first, last = (times[round(share * (len(times) - 1))] for share in (settings.start, settings.stop))
        window = (float(last), float(first))
        field = pulled_to_picture(field, x0, settings.eta, window=window)
    return travel(field, x, times, solver=settings.solver, after=after)
