"""Gradients of a grid that reach its neighbourhood: what one outline tells, the face behind it follows.

Only outlines move a surface, and a vertex inside of a flat face lies on none: by plain gradients faces lag behind their
rims and stay dented. A gradient that is diffused first, (1 - s^2 d^2/dx^2)^-1 along each axis, is the one of a Sobolev
metric (Eckstein et al. 2007; Nicolet et al. 2021); descent has the same stationary points.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

TAIL = 6.0
"""How many of its lengths a gradient is carried."""


def diffused(values: Tensor, size: int, length: float) -> Tensor:
    """`values` (size^3,) or (size^3, C), whose gradient is averaged along x, y and z, a vertex k cells away weighing
    exp(-|k| / length); unchanged at length 0. ValueError below."""
    if length < 0:
        raise ValueError(f"length: got {length}, expected at least 0")
    found: Tensor = _Diffused.apply(values, size, length) if length else values  # type: ignore[no-untyped-call]
    return found


class _Diffused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int, length: float) -> Tensor:
        ctx.size, ctx.length = size, length
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad, size = grads[0], ctx.size
        far = math.ceil(TAIL * ctx.length)
        weights = torch.exp(-torch.arange(-far, far + 1, device=grad.device, dtype=grad.dtype).abs() / ctx.length)
        weights = weights / weights.sum()
        flat = grad.reshape(size**3, -1).t().reshape(-1, 1, size, size, size)
        for axis in range(3):
            shape, pad = [1] * 5, [0] * 3
            shape[2 + axis], pad[axis] = len(weights), far
            flat = functional.conv3d(flat, weights.view(shape), padding=pad)
        return flat.reshape(-1, size**3).t().reshape(grad.shape), None, None
