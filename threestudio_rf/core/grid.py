"""The stops of a sampling run: its times, and where they differ what the network hears and how noisy it is there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from threestudio_rf.core.level import DiscreteVP, Level, Schedule
from threestudio_rf.core.model import Field
from threestudio_rf.core.solve import SECOND
from threestudio_rf.core.times import SamplingLaw, sampling_times

NoiseLaw = Literal["karras", "exponential"]
NOISE_LAWS: tuple[NoiseLaw, ...] = get_args(NoiseLaw)
RHO = 7.0
RATIOS = (0.02, 80.0)
"""The smallest and largest ratio sigma / alpha of a path without a table; 80 is that of Karras et al. 2022."""
NEAR = 1e-6
NOISIEST = 4096.0
"""The ratio that stands for no data at all, as in diffusers."""


@dataclass(frozen=True)
class Grid:
    """`times` (S + 1,) float32 of a run, falling to its end.

    heard  what the network is told at each time, (S + 1,); None: the time itself
    level  alpha and sigma at each time, (S + 1,) float64; None: the path's own
    start  the standard deviation of the noise that a run starts from
    whole  False: what is heard lies between the entries of a table
    """

    times: Tensor
    heard: Tensor | None = None
    level: Level | None = None
    start: float = 1.0
    whole: bool = True

    def along(self, field: Field) -> Field:
        """`field` with what is heard and the levels of this grid at its times, and its own between them."""
        if self.heard is None or self.level is None:
            return field
        stops = Stops(field.schedule, self.times, self.level)
        heard = self.heard

        def ask(x: Tensor, t: Tensor) -> Tensor:
            at, on = stops.find(t)
            return field(x, torch.where(on, heard.to(t.device)[at], t.to(heard.dtype)))

        return Field(ask, field.kind, stops)


@dataclass(frozen=True)
class Stops:
    """The path `of` with other levels (S + 1,) at some `times` (S + 1,)."""

    of: Schedule
    times: Tensor
    level: Level

    @property
    def table(self) -> DiscreteVP | None:
        """The path's own, of which the levels at the stops need not be entries."""
        return self.of.table

    def find(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest stop (B,) of t (B,), and whether t is that stop."""
        gap = (t[:, None].double() - self.times.to(t.device).double()).abs()
        nearest = gap.min(1)
        return nearest.indices, nearest.values < NEAR

    def __call__(self, t: Tensor) -> Level:
        """The level (B,) at t (B,)."""
        at, on = self.find(t)
        own = self.of(t)
        alpha, sigma = (torch.where(on, mine.to(t)[at], other) for mine, other in zip(self.level, own, strict=True))
        return Level(alpha, sigma)

    def time_at(self, straight: Tensor) -> Tensor:
        """The path's own."""
        return self.of.time_at(straight)


def ratios(steps: int, low: float, high: float, *, law: NoiseLaw) -> Tensor:
    """(steps,) float64 falling noise-to-data ratios sigma / alpha from `high` to `low`.

    karras       even in the ratio's seventh root (Karras et al. 2022, eq. 5)
    exponential  even in its logarithm

    ValueError for an unknown law, less than one step, or a range outside 0 < low <= high.
    """
    if law not in NOISE_LAWS or steps < 1 or not 0 < low <= high:
        raise ValueError(
            f"got law {law!r}, {steps} steps from {high:g} to {low:g}, "
            f"expected one of {', '.join(NOISE_LAWS)}, at least 1, finite falling ratios"
        )
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    if law == "exponential":
        return (math.log(high) * (1 - ramp) + math.log(low) * ramp).exp()
    root: Tensor = high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))
    return root**RHO


def ratio_grid(schedule: Schedule, wanted: Tensor) -> Grid:
    """The grid of a path through falling ratios sigma / alpha (S,), closed with clean data.

    On a table the network hears the entry whose logarithm of the ratio is nearest, as in diffusers, and the levels are
    exactly those of the ratios.
    """
    times = schedule.time_at(wanted / (1 + wanted))
    closed = torch.cat([times, times.new_zeros(1)])
    table = schedule.table
    if table is None:
        return Grid(closed.float())
    heard = torch.cat([table.time(_nearest(table, wanted)), times.new_zeros(1)])
    norm = torch.hypot(torch.ones_like(wanted), wanted)
    level = Level(torch.cat([1 / norm, norm.new_ones(1)]), torch.cat([wanted / norm, norm.new_zeros(1)]))
    return Grid(closed.float(), heard, level)


def _ratios(table: DiscreteVP) -> Tensor:
    """(N,) rising sigma / alpha of the entries, at most `NOISIEST`."""
    alpha, sigma = table.levels(torch.arange(len(table)))
    return (sigma / alpha).clamp(max=NOISIEST)


def _nearest(table: DiscreteVP, wanted: Tensor) -> Tensor:
    """The entry (S,) int64 of each ratio, by linear interpolation of the logarithms."""
    logs, asked = _ratios(table).log(), wanted.log()
    upper = torch.searchsorted(logs, asked).clamp(1, len(table) - 1)
    share = (asked - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
    return (upper - 1 + share.clamp(0, 1)).round().long()


def grid_of(
    schedule: Schedule,
    steps: int,
    *,
    sampler: str = "euler",
    law: str = "auto",
    shift: float = 1.0,
    offset: int = 1,
    n: int = 1000,
) -> Grid:
    """The stops of `steps` steps from the noisiest time of a path to clean data.

    auto                 leading on a table, even on other paths; karras for samplers of order 2, which have a smaller
                         error on it than Euler at equal calls
    karras, exponential  `ratios` between the ends of a table; on other paths within `RATIOS`, the first time being 1
    others               `times.sampling_times` with `shift` and `offset`; n only where the path is no table

    ValueError for an unknown law, one that the path does not have, and steps that do not fit.
    """
    table = schedule.table
    if law == "auto":
        law = "karras" if sampler in SECOND else "even" if table is None else "leading"
    if law in NOISE_LAWS:
        if table is None:
            stops = ratio_grid(schedule, ratios(steps, *RATIOS, law=law)).times
            return Grid(torch.cat([torch.ones(1), stops[1:]]))
        low, high = _ratios(table)[[0, -1]].tolist()
        return ratio_grid(schedule, ratios(steps, low, high, law=law))
    times = sampling_times(
        steps, law=cast(SamplingLaw, law), shift=shift, n=n if table is None else len(table), offset=offset
    )
    return Grid(times if table is not None else schedule.time_at(times))
