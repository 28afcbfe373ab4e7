"""Noise sources: which eps brings x0 to x_t = alpha x0 + sigma eps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, noise, split
from threestudio_rf.core.level import Schedule
from threestudio_rf.core.random import normal


def random_noise(x0: Tensor, *, generator: Generator) -> Tensor:
    """eps ~ N(0, I), drawn on the CPU, in x0's shape, device and dtype."""
    return normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)


def rev_noise(
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    predict: Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]],
    *,
    kind: Kind,
    schedule: Schedule,
    step: float | None = None,
    steps: int = 1,
) -> Tensor:
    """RFDS-Rev (arXiv 2406.03293): `steps` times eps := eps + k (u_hat + x0 - eps), u_hat with the prompt only.

    `step` is k; None means alpha/(alpha + sigma), which is 1 - t on the straight path and gives eps_hat exactly: the
    model's conditional mean of eps given x_t, no longer a sample of N(0, I).
    """
    level = schedule(t)
    alpha, sigma = level.like(x0)
    k = alpha / (alpha + sigma) if step is None else step
    for _ in range(steps):
        x_t = noise(x0, eps, level)
        x0_hat, eps_hat = split(kind, predict(x_t, t, ["cond"])["cond"].to(x0), x_t, level)
        eps = eps + k * (eps_hat - x0_hat + x0 - eps)
    return eps
