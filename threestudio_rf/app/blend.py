"""What an edit hands out: the picture where the edit changed little, the edit where it changed much."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-4
"""Variance below which a place has no detail that could be lost."""


def kept_edit(picture: Tensor, edited: Tensor, plain: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """e' + a (picture - plain) and the share a, with e' = plain + w (edited - plain), all (B, C, H, W).

    `plain` is the first stage's own picture of the unedited latents, so picture - plain is the detail it loses.
    w rises from 0 where the change, the largest of the channels, is `keep` of the picture's strongest (its 98th
    percentile), to 1 at twice that; holes narrower than an eighth of H are closed. a = cov(e', plain) / var(plain) in
    0..1 over windows of H / 32 (the slope of the guided filter, He, Sun and Tang 2010): detail stays where the edit
    kept the edge that it belongs to, and does not outline what the edit removed.
    """
    height = edited.shape[-2]
    change = edited - plain
    size = change.abs().amax(1, keepdim=True)
    strongest = size.flatten(1).quantile(0.98, dim=1).clamp(min=1e-6)[:, None, None, None]
    rise = ((size / strongest - keep) / keep).clamp(0, 1)
    w = closed(rise * rise * (3 - 2 * rise), max(1, height // 16))
    new = plain + w * change
    share = slope(new, plain, max(1, height // 64))
    detail = 1 - (1 - share) * grown(w, max(1, height // 64))
    return new + detail * (picture - plain), detail


def grown(w: Tensor, radius: int) -> Tensor:
    """The maximum of w (B, 1, H, W) over squares of side 2 radius + 1 (dilation)."""
    return F.max_pool2d(w, 2 * radius + 1, stride=1, padding=radius)


def closed(w: Tensor, radius: int) -> Tensor:
    """w (B, 1, H, W) with holes up to 2 radius wide filled and its outline kept (closing)."""
    return -grown(-grown(w, radius), radius)


def slope(y: Tensor, x: Tensor, radius: int) -> Tensor:
    """cov(y, x) / var(x) in 0..1 over squares of side 2 radius + 1, 1 where both are flat; (B, C, H, W)."""

    def mean(z: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(z, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)

    covariance = mean(y * x) - mean(y) * mean(x)
    return ((covariance + FLAT) / (mean(x * x) - mean(x).square() + FLAT)).clamp(0, 1)
