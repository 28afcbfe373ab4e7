"""How a prior is sampled by itself: the contract, and priors that are formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from threestudio_rf.core.grid import Grid, grid_of
from threestudio_rf.core.level import Schedule

Lengths = Callable[[Tensor], Tensor]


class Pipeline(Protocol):
    """How a prior is sampled when nothing else is asked for."""

    @property
    def sampler(self) -> str:
        """One of `core.solve.STEPS`."""
        ...

    @property
    def time_shift(self) -> float:
        """The shift of its times, 1 for none."""
        ...

    @property
    def lengths(self) -> Lengths | None:
        """What its guided predictions keep of the prompt's own (`core.guide.renorm`), None for nothing."""
        ...

    def times(
        self, steps: int, *, sampler: str, law: str = "auto", shift: float | None = None, offset: int | None = None
    ) -> Grid:
        """The stops of `steps` steps from noise to data; what is None is the prior's own. ValueError as `grid_of`."""
        ...

    def notes(self, steps: int) -> tuple[str, ...]:
        """What a run of its own does otherwise than the pipeline that it comes from, one sentence each."""
        ...

    def for_sampling(self) -> tuple[str, ...]:
        """What it says, `key=value`, that only a sampler reads."""
        ...


@dataclass(frozen=True)
class Formula:
    """The pipeline of a prior without a folder: first-order steps at the times of `grid_of`."""

    schedule: Schedule
    sampler: str = "euler"
    time_shift: float = 1.0
    lengths: Lengths | None = None

    def times(
        self, steps: int, *, sampler: str, law: str = "auto", shift: float | None = None, offset: int | None = None
    ) -> Grid:
        """`grid_of` the path, without a shift and with offset 1 unless they are given."""
        shift, offset = 1.0 if shift is None else shift, 1 if offset is None else offset
        return grid_of(self.schedule, steps, sampler=sampler, law=law, shift=shift, offset=offset)

    def notes(self, steps: int) -> tuple[str, ...]:
        """None: it comes from no pipeline."""
        return ()

    def for_sampling(self) -> tuple[str, ...]:
        """Nothing: it comes from no pipeline."""
        return ()
