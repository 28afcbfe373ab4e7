"""DirectEdit: an inversion that remembers its steps, so that the way back is exact at no extra call.

"DirectEdit: Step-Level Accurate Inversion for Flow-Based Image Editing" (Tr1stesse/DirectEdit, inversion/). A step up,
from level s' to t' > s', asks the network at the lower state under the upper time; the step down asks at its own state
moved by that residual:

    up:    d = -(t' - s') u_source(x_s, t);  x_t = x_s - d              # d is stored
    down:  x = x - (t' - s') u_target(x + d, t)

Where x = x_t, x + d is x_s, so under the source the velocity is the one of the way up and the step ends in x_s: any
number of steps returns the picture, up to rounding. States are kept in float64: a rounding of float32 grows on the way
down, where the field is steep. Their sharing of attention between the branches is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from threestudio_rf.core.level import column
from threestudio_rf.core.sample import After, State
from threestudio_rf.edit.path import SOURCE, Path


@dataclass(frozen=True)
class Direct:
    """Invert with the source prompt and sample with the target prompt in the same `steps` Euler steps.

    t_start  the noise level t' to invert to; None: the prior's noisiest
    shift    the resolution shift of the steps; None: the prior's own
    scale, scale_source  guidance down and up
    """

    steps: int = 30
    t_start: float | None = None
    shift: float | None = None
    scale: float = 2.0
    scale_source: float = 1.0

    def faithful(self) -> Direct:
        """The settings of a reconstruction: down as up, which is exact."""
        return replace(self, scale=self.scale_source)


def ascend(path: Path, x0: Tensor, times: Tensor, settings: Direct) -> Iterator[State]:
    """The states from the picture x0 (B, C, h, w) up the falling `times` (S + 1,) reversed, with the source prompt."""
    field, x = path.velocity(SOURCE, settings.scale_source), x0.double()
    rising = times.flip(0).to(x0.device)[:, None].expand(-1, len(x0))
    for left, (s, t) in zip(range(len(times) - 2, -1, -1), pairwise(rising), strict=True):
        u, low = field(x, t), column(path.level(s).sigma, x)
        x0_hat = x - low * u
        x = x + (column(path.level(t).sigma, x) - low) * u
        yield State(left, t, x, x0_hat)


def descend(
    path: Path, trail: Sequence[Tensor], times: Tensor, settings: Direct, *, role: str, after: After | None = None
) -> Iterator[State]:
    """The states down falling `times` (S + 1,) with the prompt of `role`, from the last of `trail`: the S + 1 states
    (B, C, h, w) of the way up, the picture first. ValueError for a trail of another length."""
    if len(trail) != len(times):
        raise ValueError(f"got a trail of {len(trail)} states, expected the {len(times)} of the way up")
    field, x, kept = path.velocity(role, settings.scale), trail[-1].double(), trail[0].dtype
    grid = times.to(x.device)[:, None].expand(-1, len(x))
    ways = zip(pairwise(grid), pairwise(reversed(trail)), range(len(times) - 2, -1, -1), strict=True)
    for (t, s), (upper, lower), left in ways:
        asked, low = x + (lower - upper), column(path.level(s).sigma, x)
        u = field(asked, t)
        x = x - (column(path.level(t).sigma, x) - low) * u
        x = x if after is None else after(x, s)
        yield State(left, s, x.to(kept), (asked - low * u).to(kept))
