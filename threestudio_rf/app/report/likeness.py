"""PSNR and SSIM of two pictures, or of a part of them. Pictures are (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SPREAD = 11, 1.5
K1, K2 = 0.01, 0.03


def mse(one: Tensor, other: Tensor, part: Tensor | None = None) -> Tensor:
    """Mean squared difference (B,), over the pixels where `part` (B or 1, 1, H, W) is 1; NaN where it is empty."""
    if one.shape != other.shape:
        raise ValueError(f"got pictures {tuple(one.shape)} and {tuple(other.shape)}, expected equal shapes")
    square = (one.double() - other.double()).square()
    if part is None:
        return square.flatten(1).mean(1)
    weight = part.double().expand_as(square)
    return (square * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)


def psnr(one: Tensor, other: Tensor, part: Tensor | None = None) -> Tensor:
    """-10 log10 of `mse` (B,), in dB; infinite for equal pictures."""
    return -10 * mse(one, other, part).log10()


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Structural similarity (B,) (Wang et al. 2004): Gaussian window of 11 pixels and std 1.5, K 0.01 and 0.03.

    The mean over channels and over the places where the whole window lies inside, as in the authors' code; ValueError
    for pictures smaller than the window, or of different shapes.
    """
    if one.shape != other.shape or min(one.shape[-2:]) < WINDOW:
        raise ValueError(f"got pictures {tuple(one.shape)} and {tuple(other.shape)}, expected equal ones of 11 pixels")
    x, y = one.double(), other.double()
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    both = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * both + K2**2) / (var_x + var_y + K2**2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(x: Tensor) -> Tensor:
    """Each channel under the window, without a border: (B, C, H, W) -> (B, C, H - 10, W - 10)."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    line = torch.exp(-0.5 * (place / SPREAD) ** 2)
    line = line / line.sum()
    flat = x.flatten(0, 1)[:, None]
    blurred: Tensor = F.conv2d(F.conv2d(flat, line[None, None, :, None]), line[None, None, None, :])
    return blurred.view(*x.shape[:2], *blurred.shape[2:])


def likeness(one: Tensor, other: Tensor, part: Tensor | None = None) -> dict[str, float | None]:
    """`psnr` of two pictures (1, 3, H, W), over `part` where one is given, and the `ssim` of the whole; None where
    there is none: equal pictures, an empty part, pictures smaller than the window."""
    db = float(psnr(one, other, part))
    small = min(one.shape[-2:]) < WINDOW
    return {"psnr": db if abs(db) < float("inf") else None, "ssim": None if small else float(ssim(one, other))}
