"""Parametrizations: a prediction is p = a x0 + b eps; with x_t = alpha x0 + sigma eps that is one 2x2 system."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from threestudio_rf.core.level import Level

Kind = Literal["x0", "eps", "v", "flow"]
"""clean data; noise; alpha eps - sigma x0 (Salimans and Ho 2022); eps - x0 (rectified flow, SD3's sign)."""

KINDS: tuple[Kind, ...] = get_args(Kind)

Coefficient = Tensor | float


def row(kind: Kind, alpha: Coefficient, sigma: Coefficient) -> tuple[Coefficient, Coefficient]:
    """The coefficients (a, b) of p = a x0 + b eps; ValueError for an unknown kind."""
    rows: dict[str, tuple[Coefficient, Coefficient]] = {
        "x0": (1.0, 0.0),
        "eps": (0.0, 1.0),
        "v": (-sigma, alpha),
        "flow": (-1.0, 1.0),
    }
    if kind not in rows:
        raise ValueError(f"got kind {kind!r}, expected one of {', '.join(KINDS)}")
    return rows[kind]


def sign(kind: Kind) -> float:
    """The sign that makes p_hat - p descend in x0: -1 for x0, whose residual points uphill, else 1."""
    return -1.0 if kind == "x0" else 1.0


def noise(x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """x_t = alpha x0 + sigma eps, all (B, ...); any level is allowed, also alpha = 0 and sigma = 0."""
    same_shape(x0, eps)
    alpha, sigma = level.like(x0)
    return alpha * x0 + sigma * eps


def join(kind: Kind, x0: Tensor, eps: Tensor, level: Level) -> Tensor:
    """p = a x0 + b eps, all (B, ...): what a perfect model of `kind` would predict."""
    same_shape(x0, eps)
    a, b = row(kind, *level.like(x0))
    return a * x0 + b * eps


def split(kind: Kind, p: Tensor, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """(x0_hat, eps_hat) of a prediction, all (B, ...): solves x_t = alpha x0 + sigma eps, p = a x0 + b eps.

    The determinant alpha b - sigma a is -sigma for x0, alpha for eps, alpha^2 + sigma^2 for v and alpha + sigma for
    flow. Raises ValueError where it vanishes: x0 at sigma = 0, eps at alpha = 0.
    """
    same_shape(p, x_t)
    alpha, sigma = level.like(x_t)
    a, b = row(kind, alpha, sigma)
    det = alpha * b - sigma * a
    if kind in ("x0", "eps") and bool((det == 0).any()):
        raise ValueError(f"got a level where {kind} says nothing about the other part, expected no zero in {det}")
    return (b * x_t - sigma * p) / det, (alpha * p - a * x_t) / det


def same_shape(one: Tensor, other: Tensor) -> None:
    """ValueError unless both shapes agree; broadcasting over samples would give wrong numbers in silence."""
    if one.shape != other.shape:
        raise ValueError(f"got shapes {tuple(one.shape)} and {tuple(other.shape)}, expected equal ones")
