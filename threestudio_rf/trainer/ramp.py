"""Values over steps: a number, a straight or geometric ramp, or ramps that meet end to end.

The list forms are threestudio's (`threestudio/utils/misc.py`, `C`), with one difference: an end that is a float, which
counts epochs there, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Value = Callable[[int], float]


@dataclass(frozen=True)
class Ramp:
    """From `start` at `from_step` to `end` at `to_step`, constant outside; "exp" goes by equal factors.

    Raises ValueError for steps that do not rise and for "exp" between values that are not both positive.
    """

    start: float
    end: float
    from_step: int
    to_step: int
    shape: Literal["linear", "exp"] = "linear"

    def __post_init__(self) -> None:
        if not self.from_step < self.to_step:
            raise ValueError(f"a ramp must end after it begins, got steps {self.from_step} to {self.to_step}")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"a ramp needs finite values, got {self.start} to {self.end}")
        if self.shape not in ("linear", "exp"):
            raise ValueError(f"the shape of a ramp is linear or exp, got {self.shape!r}")
        if self.shape == "exp" and min(self.start, self.end) <= 0:
            raise ValueError(f"an exp ramp needs positive values, got {self.start} to {self.end}")

    def __call__(self, step: int) -> float:
        share = min(1.0, max(0.0, (step - self.from_step) / (self.to_step - self.from_step)))
        if self.shape == "exp":
            return self.start * math.pow(self.end / self.start, share)
        return self.start + (self.end - self.start) * share

    @property
    def corners(self) -> list[tuple[int, float]]:
        """The steps at which the value bends, with the value there."""
        return [(self.from_step, self.start), (self.to_step, self.end)]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value

    @property
    def corners(self) -> list[tuple[int, float]]:
        """One corner, at step 0."""
        return [(0, self.value)]


@dataclass(frozen=True)
class Chain:
    """Ramps that meet end to end; before the first and after the last the value is constant."""

    ramps: tuple[Ramp, ...]

    def __call__(self, step: int) -> float:
        for part in self.ramps:
            if step < part.to_step:
                return part(step)
        return self.ramps[-1].end

    @property
    def corners(self) -> list[tuple[int, float]]:
        """The corners of all ramps."""
        return [corner for part in self.ramps for corner in part.corners]


def _number(value: Any, form: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r} in {form!r}")
    return float(value)


def _step(value: Any, form: Any) -> int:
    if isinstance(value, float):
        raise ValueError(
            f"a step must be a whole number, got {value!r} in {form!r}; threestudio counts epochs there, we have none"
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"a step must be a whole number, got {value!r} in {form!r}")
    return value


def ramp(value: float | Sequence[Any]) -> Ramp | Constant | Chain:
    """The value that a config means: `x`; `[v0, v1, end]`; `[start, v0, v1, end]`; `[s0, v0, v1, s1, v2, s2, ...]`;
    each list may end with the word exp. Raises ValueError for anything else, with the form that was given."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return Constant(_number(value, value))
    items = list(value)
    shape: Literal["linear", "exp"] = "linear"
    if items and items[-1] == "exp":
        items, shape = items[:-1], "exp"
    if len(items) == 3:
        items = [0, *items]
    if len(items) < 4 or len(items) % 2:
        raise ValueError(
            f"expected a number, [v0, v1, end], [start, v0, v1, end] or [s0, v0, v1, s1, v2, s2, ...], got {value!r}"
        )
    steps = [_step(x, value) for x in (items[0], *items[3::2])]
    values = [_number(x, value) for x in (items[1], items[2], *items[4::2])]
    corners = list(zip(steps, values, strict=True))
    parts = tuple(Ramp(v0, v1, s0, s1, shape) for (s0, v0), (s1, v1) in pairwise(corners))
    return parts[0] if len(parts) == 1 else Chain(parts)
