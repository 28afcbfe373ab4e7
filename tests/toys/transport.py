"""Where the exact probability flow of a mixture in one dimension takes a point: the truth behind measured orders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.level import Level


def cumulative(mixture: Any, x: Tensor, level: Level) -> Tensor:
    """The distribution function (B,) of x_t (B, 1) at one level; in one dimension the probability flow keeps it."""
    scale = (level.alpha**2 * mixture.std**2 + level.sigma**2).sqrt()
    return torch.special.ndtr((x - level.alpha * mixture.means[:, 0]) / scale) @ mixture.weights


def transported(mixture: Any, x: Tensor, now: Level, after: Level) -> Tensor:
    """Where the exact flow takes x (B, 1), by bisection."""
    wanted = cumulative(mixture, x, now)
    low, high = torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(60):
        middle = (low + high) / 2
        below = (cumulative(mixture, middle, after) < wanted)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low
