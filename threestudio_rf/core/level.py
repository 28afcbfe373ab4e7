"""Levels: how much data and how much noise x_t = alpha x0 + sigma eps holds at time t.

Time is t in [0, 1], float, shape (B,), 0 clean and 1 noise. A schedule maps t to a level and a level to t: the straight
path (alpha = 1 - t, sigma = t), tables of variance-preserving levels (alpha^2 + sigma^2 = 1) with t = (k + 1) / N,
where k = 0 .. N - 1 is the trained index and k = -1 is clean, and any other path by its formula (`Continuous`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from threestudio_rf.core.transfer import sent

BETAS = ("linear", "scaled_linear", "sqrt", "cosine", "sigmoid", "trained_betas")
"""Our names of the beta schedules, see `betas`."""

ALIASES: Mapping[str, Mapping[str, str]] = {
    "diffusers": {
        "linear": "linear",
        "scaled_linear": "scaled_linear",
        "squaredcos_cap_v2": "cosine",
        "sigmoid": "sigmoid",
    },
    "ldm": {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"},
    "improved-diffusion": {"linear": "linear", "cosine": "cosine"},
}
"""library -> its name -> ours. LDM calls scaled_linear "linear"; improved-diffusion's ends are (1e-4, 0.02) 1000/N."""

BISECTIONS = 60


def column(values: Tensor, x: Tensor) -> Tensor:
    """`values` (B,) as (B, 1, ..., 1) in the dtype and on the device of `x` (B, ...): the one broadcast.

    Raises ValueError when there is not exactly one value per sample.
    """
    if values.shape != x.shape[:1]:
        raise ValueError(f"got values of shape {tuple(values.shape)}, expected one per sample of x {tuple(x.shape)}")
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


class Level(NamedTuple):
    """The two coefficients of x_t = alpha x0 + sigma eps, each (B,)."""

    alpha: Tensor
    sigma: Tensor

    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma as (B, 1, ..., 1), ready to multiply `x` (B, ...); ValueError when batch sizes differ."""
        return column(self.alpha, x), column(self.sigma, x)


class Schedule(Protocol):
    """The path of a prior from data to noise."""

    @property
    def table(self) -> DiscreteVP | None:
        """The table of betas that the levels come from; None for a path that has a level at every time."""
        ...

    def __call__(self, t: Tensor) -> Level:
        """The level (B,) at t (B,) in t's dtype; ValueError outside 0..1."""
        ...

    def time_at(self, straight: Tensor) -> Tensor:
        """t (B,) where the path is as noisy as the straight one at t' (B,): sigma / (alpha + sigma) = t'."""
        ...


class RectifiedFlow:
    """The straight path between data and noise (Liu et al. 2022): alpha = 1 - t, sigma = t."""

    table: DiscreteVP | None = None

    def __call__(self, t: Tensor) -> Level:
        """(1 - t, t), each (B,); ValueError outside 0..1."""
        _check_time(t)
        return Level(1 - t, t)

    def time_at(self, straight: Tensor) -> Tensor:
        """t' itself."""
        return straight


rectified_flow = RectifiedFlow()


@dataclass(frozen=True)
class Continuous:
    """A path by its formula t (B,) -> Level, whose noise sigma / (alpha + sigma) rises with t."""

    formula: Callable[[Tensor], Level]
    table: DiscreteVP | None = None

    def __call__(self, t: Tensor) -> Level:
        """The level (B,) at t (B,); ValueError outside 0..1."""
        _check_time(t)
        return self.formula(t)

    def time_at(self, straight: Tensor) -> Tensor:
        """t (B,) at the noise level t' (B,), by bisection; 1 above the noisiest level."""
        wanted = straight.double()
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = to_straight(self.formula(middle))[0] < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high.to(straight.dtype)


@dataclass(frozen=True)
class Heard:
    """`path` at the times that a network makes of those it is told: its levels at t (B,) are those of `hear(t)`.

    Where a network rounds its own label (in bfloat16), x_t is then noised with what it hears.
    """

    path: Schedule
    hear: Callable[[Tensor], Tensor]

    @property
    def table(self) -> DiscreteVP | None:
        """The path's own."""
        return self.path.table

    def __call__(self, t: Tensor) -> Level:
        """The level (B,) at t (B,); ValueError outside 0..1."""
        _check_time(t)
        return self.path(self.hear(t))

    def time_at(self, straight: Tensor) -> Tensor:
        """The path's own."""
        return self.path.time_at(straight)


def _check_time(t: Tensor) -> None:
    """ValueError for times outside 0..1. Elsewhere than on a CPU, where to look is to wait, they are taken as they are:
    whoever draws times draws them on the CPU."""
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"got times {t}, expected all of them in 0..1")


def betas(
    name: str, n: int, *, start: float = 0.00085, end: float = 0.012, trained: Sequence[float] | Tensor | None = None
) -> Tensor:
    """The table of N betas in float64; the default ends are those of Stable Diffusion.

    linear         linspace(start, end)
    scaled_linear  linspace(sqrt start, sqrt end)^2
    sqrt           sqrt(linspace(start, end))
    cosine         from abar = cos^2((i/N + 0.008) / 1.008 pi/2), betas at most 0.999 (Nichol and Dhariwal 2021)
    sigmoid        start + (end - start) sigmoid(linspace(-6, 6))
    trained_betas  `trained`, which overrides every other name when it is given

    Raises ValueError for an unknown name and for betas that are not N numbers in (0, 1).
    """
    double = torch.float64
    if trained is not None:
        table = torch.as_tensor(trained, dtype=double)
    elif name == "linear":
        table = torch.linspace(start, end, n, dtype=double)
    elif name == "scaled_linear":
        table = torch.linspace(start**0.5, end**0.5, n, dtype=double) ** 2
    elif name == "sqrt":
        table = torch.linspace(start, end, n, dtype=double) ** 0.5
    elif name == "cosine":
        angle = (torch.arange(n + 1, dtype=double) / n + 0.008) / 1.008 * math.pi / 2
        abar = angle.cos() ** 2
        table = (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    elif name == "sigmoid":
        table = start + (end - start) * torch.linspace(-6, 6, n, dtype=double).sigmoid()
    elif name == "trained_betas":
        raise ValueError("got name trained_betas without betas, expected `trained`")
    else:
        raise ValueError(f"got beta schedule {name!r}, expected one of {', '.join(BETAS)}")
    if table.shape != (n,):
        raise ValueError(f"got betas of shape {tuple(table.shape)}, expected ({n},)")
    return _checked(table)


def zero_terminal(betas: Tensor) -> Tensor:
    """(N,) betas rescaled so that the last level has no data in it, alpha = 0 (Lin et al. 2023, algorithm 1).

    sqrt abar is moved and stretched to end at 0 and to begin where it did; the last beta is 1.
    """
    root = (1 - _checked(betas)).cumprod(0).sqrt()
    abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - abar / torch.cat([torch.ones_like(abar[:1]), abar[:-1]])


def _checked(table: Tensor) -> Tensor:
    """`table` in float64; ValueError unless it is one-dimensional with every beta in (0, 1), the last one in (0, 1]."""
    inside = (table > 0) & (table < 1) if table.ndim == 1 and len(table) else torch.zeros(1, dtype=torch.bool)
    if len(inside) > 1 and table[-1] == 1:
        inside[-1] = True
    if not bool(inside.all()):
        raise ValueError(f"got betas of shape {tuple(table.shape)}: {table}, expected one dimension, each in (0, 1)")
    return table.double()


class DiscreteVP:
    """A table of variance-preserving levels: abar = cumprod(1 - betas), alpha = sqrt abar, sigma = sqrt(1 - abar).

    `final` is the level of t = 0 (k = -1), where a sampler ends: "clean" is alpha = 1 (improved-diffusion; diffusers'
    set_alpha_to_one), "first" repeats k = 0, so that sqrt(1 - abar_0) of the noise stays (LDM, Stable Diffusion).
    """

    def __init__(self, betas: Tensor, *, final: Literal["clean", "first"] = "clean") -> None:
        if final not in ("clean", "first"):
            raise ValueError(f"got final {final!r}, expected clean or first")
        self.betas = _checked(betas)
        self.abar = (1 - self.betas).cumprod(0)
        end = torch.ones_like(self.abar[:1]) if final == "clean" else self.abar[:1]
        self._abar_from_final = torch.cat([end, self.abar])

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def table(self) -> DiscreteVP | None:
        """Itself."""
        return self

    def __call__(self, t: Tensor) -> Level:
        """The level (B,) of t (B,) in t's dtype: that of `index(t)`, at t = 0 the final level."""
        _check_time(t)
        alpha, sigma = self.levels(torch.where(t > 0, self.index(t), -1))
        return Level(alpha.to(t.dtype), sigma.to(t.dtype))

    def levels(self, k: Tensor) -> Level:
        """The level of the integer index k in -1 .. N - 1, in float64; ValueError outside."""
        if k.device.type == "cpu" and bool(((k < -1) | (k >= len(self))).any()):
            raise ValueError(f"got index {int(k.min())}..{int(k.max())}, expected -1..{len(self) - 1}")
        abar = sent(self._abar_from_final, k.device)[k + 1]
        return Level(abar.sqrt(), (1 - abar).sqrt())

    def index(self, t: Tensor) -> Tensor:
        """The label (B,) int64 that a network trained on this table hears at t: k = round(N t) - 1, at least 0."""
        return ((t.double() * len(self)).round().long() - 1).clamp(min=0)

    def between(self, t: Tensor) -> Tensor:
        """`index` (B,) without rounding, float32: the label of a time between two entries."""
        return (len(self) * t.double() - 1).clamp(min=0).float()

    def time(self, k: Tensor) -> Tensor:
        """t = (k + 1) / N in float64."""
        return (k + 1).double() / len(self)

    def time_at(self, straight: Tensor) -> Tensor:
        """t (B,) where this table is as noisy as the straight path at t' (B,): the inverse of t' = sigma/(alpha+sigma).

        The table is interpolated linearly, so `index(time_at(t'))` is the entry whose t' is nearest. A t' above the
        last entry (0.936 for Stable Diffusion) gives t = 1: no network on this table has seen more noise.
        """
        clean = torch.zeros(1, dtype=torch.float64)
        table = torch.cat([clean, to_straight(self.levels(torch.arange(len(self))))[0]]).to(straight.device)
        wanted = straight.double()
        upper = torch.searchsorted(table, wanted).clamp(1, len(self))
        low, high = table[upper - 1], table[upper]
        t = (upper - 1 + (wanted - low) / (high - low)) / len(self)
        return t.clamp(0, 1).to(straight.dtype)


def to_straight(level: Level) -> tuple[Tensor, Tensor]:
    """(t', scale), each (B,): x_t / scale lies on the straight path at time t', with the same x0 and eps.

    t' = sigma / (alpha + sigma), scale = alpha + sigma.
    """
    scale = level.alpha + level.sigma
    return level.sigma / scale, scale
