"""A closed-form prior for the laws of core: a mixture of Gaussians with modes of one width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join
from threestudio_rf.core.level import Level, Schedule, column


@dataclass(frozen=True)
class Mixture:
    """Modes `means` (K, ...) with standard deviation `std` and `weights` (K,)."""

    means: Tensor
    std: float
    weights: Tensor

    def hats(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """E[x0 | x_t] and E[eps | x_t], in a form that also holds at sigma = 0."""
        alpha, sigma = level.like(x_t)
        away = x_t[:, None] - alpha[:, None] * self.means
        variance = level.alpha**2 * self.std**2 + level.sigma**2
        log_r = self.weights.log() - away.flatten(2).square().sum(-1) / (2 * variance[:, None])
        r = log_r.softmax(1).reshape(*log_r.shape, *[1] * (x_t.ndim - 1))
        pull = (r * away).sum(1) / column(variance, x_t)
        return (r * self.means).sum(1) + alpha * self.std**2 * pull, sigma * pull

    def field(self, kind: Kind, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        """What a perfect network of `kind` on `schedule` predicts."""

        def predict(x: Tensor, t: Tensor) -> Tensor:
            level = schedule(t)
            return join(kind, *self.hats(x, level), level)

        return predict


@pytest.fixture
def make_mixture() -> Callable[..., Mixture]:
    """mixture(means, std): equal weights, double precision."""

    def make(means: list[list[float]], std: float) -> Mixture:
        table = torch.tensor(means, dtype=torch.float64)
        return Mixture(table, std, torch.full((len(table),), 1 / len(table), dtype=torch.float64))

    return make
