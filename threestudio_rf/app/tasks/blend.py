"""The final picture of an edit: the source where the edit changed little, the edit where it changed much."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-4
"""Variance below which a place has no detail that could be lost."""
ALIKE = 0.15
"""Distance of two colours, Euclidean in rgb, up to which one is taken for the other."""


def kept_edit(picture: Tensor, edited: Tensor, plain: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """e' + a (picture - plain) and the share a, with e' = plain + w (edited - plain - b d), all (B, C, H, W).

    `plain` is the first stage's own picture of the unedited latents, so picture - plain is the detail it loses.
    w rises from 0 where the change, the largest of the channels, is `keep` of the picture's strongest (its 98th
    percentile), to 1 at twice that; holes narrower than an eighth of H are closed, and a row of pixels around it, where
    the old edge is, changes too. An edit shifts the whole picture a little, which shows where it bares what was behind
    the old object: d is the shift of the places that it left alone, carried into the others, and b how much a pixel of
    the edit is the background that lies around, carried likewise and shifted, exp(-|difference|^2 / (2 ALIKE^2)).
    a = cov(e', plain) / var(plain) in 0..1 over windows of H / 32 (the slope of the guided filter, He, Sun and Tang
    2010): detail stays where the edit kept the edge that it belongs to, and does not outline what the edit removed.
    """
    height = edited.shape[-2]
    change = edited - plain
    size = change.abs().amax(1, keepdim=True)
    strongest = size.flatten(1).quantile(0.98, dim=1).clamp(min=1e-6)[:, None, None, None]
    rise = ((size / strongest - keep) / keep).clamp(0, 1)
    w = grown(closed(rise * rise * (3 - 2 * rise), max(1, height // 16)), max(1, height // 64))
    alone = 1 - grown(w, max(1, height // 32))
    shift, behind = carried(change, alone), carried(plain, alone)
    bared = torch.exp(-(edited - behind - shift).square().sum(1, keepdim=True) / (2 * ALIKE**2))
    new = plain + w * (change - bared * shift)
    share = slope(new, plain, max(1, height // 64))
    detail = 1 - (1 - share) * grown(w, max(1, height // 64))
    return new + detail * (picture - plain), detail


def carried(x: Tensor, known: Tensor) -> Tensor:
    """x (B, C, H, W) where `known` (B, 1, H, W) is 1, and smoothly carried from there to where it is 0: means weighted
    by `known` (normalised convolution, Knutsson and Westin 1993) over windows from half the height down to a sixteenth,
    the smaller one where at least a fifth of it is known."""
    found = x
    for level, share in enumerate((2, 4, 8, 16)):
        radius = max(1, x.shape[-2] // (4 * share))
        total, weight = x * known, known
        for _ in range(3):
            total, weight = window_mean(total, radius), window_mean(weight, radius)
        here = total / weight.clamp_min(1e-4)
        sure = (weight / 0.2).clamp(0, 1)
        found = here if level == 0 else sure * here + (1 - sure) * found
    return found


def window_mean(z: Tensor, radius: int) -> Tensor:
    """Means of z (B, C, H, W) over squares of side 2 radius + 1, the border repeated: of columns, then of rows."""
    columns = F.avg_pool2d(F.pad(z, [radius] * 4, mode="replicate"), (2 * radius + 1, 1), stride=1)
    return F.avg_pool2d(columns, (1, 2 * radius + 1), stride=1)


def grown(w: Tensor, radius: int) -> Tensor:
    """The maximum of w (B, 1, H, W) over squares of side 2 radius + 1 (dilation): of columns, then of rows."""
    columns = F.max_pool2d(w, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(columns, (1, 2 * radius + 1), stride=1, padding=(0, radius))


def closed(w: Tensor, radius: int) -> Tensor:
    """w (B, 1, H, W) with holes up to 2 radius wide filled and its outline kept (closing)."""
    return -grown(-grown(w, radius), radius)


def slope(y: Tensor, x: Tensor, radius: int) -> Tensor:
    """cov(y, x) / var(x) in 0..1 over squares of side 2 radius + 1, 1 where both are flat; (B, C, H, W)."""
    my, mx = window_mean(y, radius), window_mean(x, radius)
    covariance = window_mean(y * x, radius) - my * mx
    return ((covariance + FLAT) / (window_mean(x * x, radius) - mx.square() + FLAT)).clamp(0, 1)
