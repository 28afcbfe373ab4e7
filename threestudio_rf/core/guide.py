"""Guidance: predictions of several roles combined linearly; one convention, uncond + s (cond - uncond).

Weights that sum to 1 commute with every change of parametrization (`convert.split`), so all of this is valid for x0,
eps, v and flow alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from threestudio_rf.core.level import column


def cfg(s: float | Tensor) -> dict[str, float | Tensor]:
    """Weights of classifier-free guidance (Ho and Salimans 2022): s = 1 is none, s = 0 is unconditional.

    A role of weight 0 is left out, so that it costs no network call; s may be (B,), one per sample, with both roles.
    threestudio counts from 0: its g is s = g + 1.
    """
    if isinstance(s, Tensor):
        return {"cond": s, "uncond": 1 - s}
    return {role: weight for role, weight in {"cond": float(s), "uncond": 1 - float(s)}.items() if weight != 0}


def within(s: float, t: Tensor, interval: tuple[float, float]) -> float | Tensor:
    """The guidance scale at t (B,) of guidance in a limited interval (arXiv 2404.07724): s from its low to its high
    end, both included, and 1, no guidance, outside. One number where it is the same for all of t, else (B,)."""
    low, high = interval
    if (low, high) == (0, 1):  # t need not be looked at, which a GPU would have to wait for
        return s
    inside = (low <= t) & (t <= high)
    if bool(inside.all()):
        return s
    return torch.where(inside, s, 1.0) if bool(inside.any()) else 1.0


def combine(predictions: Mapping[str, Tensor], weights: Mapping[str, float | Tensor]) -> Tensor:
    """The sum of weight * prediction over the roles of `weights`; predictions (B, ...), weights numbers or (B,).

    Raises ValueError when there is no weight or when a weighted role has no prediction.
    """
    missing = sorted(weights.keys() - predictions.keys())
    if missing or not weights:
        raise ValueError(f"got predictions for {sorted(predictions)}, expected {missing or 'at least one weight'}")
    first, *others = (_weight(weight, predictions[role]) * predictions[role] for role, weight in weights.items())
    return sum(others, first)


def perp(x: Tensor, y: Tensor) -> Tensor:
    """The part of x (B, ...) perpendicular to y (B, ...), per sample: perp(x, y) . y = 0; x itself where y = 0."""
    rest = tuple(range(1, x.ndim))
    length = (y * y).sum(rest, keepdim=True)
    along = (x * y).sum(rest, keepdim=True) / torch.where(length == 0, 1, length)
    return x - along * y


def perp_neg(
    cond: Tensor,
    uncond: Tensor,
    negatives: Sequence[Tensor],
    *,
    weights: Sequence[float | Tensor],
    scale: float | Tensor,
) -> Tensor:
    """Perp-Neg (Armandpour et al. 2023): uncond + s (e_pos + sum_i w_i perp(e_i, e_pos)), e relative to uncond.

    Predictions are (B, ...); a weight is a number or (B,), below 0 to push away; so is the scale. Raises ValueError
    when there is not one weight per negative.
    """
    if len(negatives) != len(weights):
        raise ValueError(f"got {len(weights)} weights, expected one for each of {len(negatives)} negatives")
    positive = cond - uncond
    direction = positive
    for negative, weight in zip(negatives, weights, strict=True):
        direction = direction + _weight(weight, uncond) * perp(negative - uncond, positive)
    return uncond + _weight(scale, uncond) * direction


def rescale(guided: Tensor, cond: Tensor, *, share: float) -> Tensor:
    """Guidance rescale (Lin et al. 2023, eq. 15-16): `share` of the way to the standard deviation of `cond`.

    Both (B, ...), the deviation is per sample over everything else; share = 0 changes nothing. ValueError for a share
    outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"got share {share}, expected 0..1")
    rest = tuple(range(1, cond.ndim))
    factor = cond.std(rest, keepdim=True) / guided.std(rest, keepdim=True)
    return guided * (share * factor + (1 - share))


def renorm(guided: Tensor, cond: Tensor, *, lengths: Callable[[Tensor], Tensor]) -> Tensor:
    """`guided` (B, ...) with the lengths of `cond`; `lengths` of a prediction are of a shape that multiplies it."""
    return guided * (lengths(cond) / lengths(guided))


def _weight(weight: float | Tensor, x: Tensor) -> float | Tensor:
    return column(weight, x) if isinstance(weight, Tensor) and weight.ndim else weight
