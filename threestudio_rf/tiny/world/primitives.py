"""Signed distances of primitive solids: points (N, 3) -> (N,), negative inside, on the device of the points.

Closed forms of I. Quilez, "Distance functions". A union is exact outside, a difference is a lower bound, so sphere
tracing is safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor], Tensor]


def at(points: Tensor, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """Points (N, 3) in the coordinates of a part that stands at (x, y, z)."""
    return points - points.new_tensor((x, y, z))


def _length(vectors: Tensor) -> Tensor:
    length: Tensor = vectors.norm(dim=-1)
    return length


def sphere(points: Tensor, radius: float) -> Tensor:
    """Ball around the origin."""
    return _length(points) - radius


def box(points: Tensor, half: tuple[float, float, float], rounding: float = 0.015) -> Tensor:
    """Box of half sides `half`, its edges rounded."""
    q = points.abs() - (points.new_tensor(half) - rounding)
    return _length(q.clamp_min(0)) + q.amax(dim=-1).clamp_max(0) - rounding


def cylinder(points: Tensor, radius: float, half: float, rounding: float = 0.015) -> Tensor:
    """Cylinder along z, its edges rounded."""
    q = torch.stack((_length(points[:, :2]) - radius, points[:, 2].abs() - half), dim=-1) + rounding
    return _length(q.clamp_min(0)) + q.amax(dim=-1).clamp_max(0) - rounding


def capped_cone(points: Tensor, low: float, high: float, half: float) -> Tensor:
    """Radius `low` at z = -half and `high` at z = half."""
    q = torch.stack((_length(points[:, :2]), points[:, 2]), dim=-1)
    k1, k2 = q.new_tensor((high, half)), q.new_tensor((high - low, 2 * half))
    cap = torch.stack(
        ((q[:, 0] - torch.where(q[:, 1] < 0, low, high)).clamp_min(0), q[:, 1].abs() - half),
        dim=-1,
    )
    side = q - k1 + k2 * (((k1 - q) @ k2) / (k2 @ k2)).clamp(0, 1)[:, None]
    sign = torch.where((side[:, 0] < 0) & (cap[:, 1] < 0), -1.0, 1.0)
    return sign * torch.minimum((cap**2).sum(-1), (side**2).sum(-1)).sqrt()


def torus(points: Tensor, ring: float, tube: float) -> Tensor:
    """Ring in the x-y plane."""
    flat = _length(points[:, :2]) - ring
    return (flat**2 + points[:, 2] ** 2).sqrt() - tube


def union(*distances: Tensor) -> Tensor:
    """The nearest of several solids."""
    return torch.stack(distances).amin(dim=0)


def extrude(flat: Tensor, x: Tensor, half: float) -> Tensor:
    """A figure in the y-z plane with thickness 2 half along x."""
    q = torch.stack((flat, x.abs() - half), dim=-1)
    return _length(q.clamp_min(0)) + q.amax(dim=-1).clamp_max(0)


def polygon(points: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Exact signed distance (N,) to a closed polygon, points (N, 2)."""
    inside = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    best = points.new_full((len(points),), math.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        a, b = points.new_tensor((ax, ay)), points.new_tensor((bx, by))
        edge, to = b - a, points - a
        share = ((to @ edge) / (edge @ edge)).clamp(0, 1)
        best = torch.minimum(best, ((to - share[:, None] * edge) ** 2).sum(-1))
        crosses = (points[:, 1] >= min(ay, by)) & (points[:, 1] < max(ay, by))
        left = edge[0] * to[:, 1] - edge[1] * to[:, 0]
        inside ^= crosses & ((left > 0) if by > ay else (left < 0))
    return torch.where(inside, -best.sqrt(), best.sqrt())


def ellipsoid(points: Tensor, radii: tuple[float, float, float]) -> Tensor:
    """Ellipsoid around the origin. Outside it is Quilez's first-order distance, made smaller for flat ones, whose slope
    would exceed 1 (0.59 times the ratio of the radii, measured); inside a lower bound."""
    r, steep = points.new_tensor(radii), max(1.0, 0.59 * max(radii) / min(radii))
    near, far = (points / r).norm(dim=-1), (points / r**2).norm(dim=-1)
    return torch.where(near < 1, (near - 1) * min(radii), near * (near - 1) / (far.clamp_min(1e-6) * steep))
