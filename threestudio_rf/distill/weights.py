"""w(level): weights of the distillation gradient by name. Functions of the level only: Level of (B,) -> (B,)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threestudio_rf.core.level import Level


def uniform(level: Level) -> Tensor:
    """1."""
    return torch.ones_like(level.sigma)


def sigma2(level: Level) -> Tensor:
    """sigma^2: threestudio's "sds"."""
    return level.sigma**2


def alpha_sigma2(level: Level) -> Tensor:
    """alpha sigma^2: threestudio's "fantasia3d"."""
    return level.alpha * level.sigma**2


def sigma_over_alpha(level: Level) -> Tensor:
    """sigma / alpha: in space eps the scale of space x0 (ISM). Infinite at alpha = 0."""
    return level.sigma / level.alpha


WEIGHTS: dict[str, Callable[[Level], Tensor]] = {
    "uniform": uniform,
    "sigma2": sigma2,
    "alpha_sigma2": alpha_sigma2,
    "sigma_over_alpha": sigma_over_alpha,
}
