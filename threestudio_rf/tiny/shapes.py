"""Signed distances of the tiny world's shapes: z up, front = +x, centred on the origin, inside radius 0.62.

Primitives follow the closed forms of I. Quilez, "Distance functions". Each takes points (N, 3) and returns (N,),
negative inside; a union is exact outside, a difference is a lower bound, so sphere tracing is safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Distance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """A named solid. `front`: its front differs from its back, so a Janus object can be told from a right one."""

    name: str
    sdf: Distance
    revolution: bool
    front: bool = False


def _at(points: Tensor, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    return points - points.new_tensor((x, y, z))


def _sphere(points: Tensor, radius: float) -> Tensor:
    return points.norm(dim=-1) - radius


def _box(points: Tensor, half: tuple[float, float, float], rounding: float = 0.015) -> Tensor:
    q = points.abs() - (points.new_tensor(half) - rounding)
    return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding


def _cylinder(points: Tensor, radius: float, half: float, rounding: float = 0.015) -> Tensor:
    q = torch.stack((points[:, :2].norm(dim=-1) - radius, points[:, 2].abs() - half), dim=-1) + rounding
    return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding


def _capped_cone(points: Tensor, low: float, high: float, half: float) -> Tensor:
    """Radius `low` at z = -half and `high` at z = half."""
    q = torch.stack((points[:, :2].norm(dim=-1), points[:, 2]), dim=-1)
    k1, k2 = q.new_tensor((high, half)), q.new_tensor((high - low, 2 * half))
    cap = torch.stack(
        ((q[:, 0] - torch.where(q[:, 1] < 0, low, high)).clamp_min(0), q[:, 1].abs() - half),
        dim=-1,
    )
    side = q - k1 + k2 * (((k1 - q) @ k2) / (k2 @ k2)).clamp(0, 1)[:, None]
    sign = torch.where((side[:, 0] < 0) & (cap[:, 1] < 0), -1.0, 1.0)
    return sign * torch.minimum((cap**2).sum(-1), (side**2).sum(-1)).sqrt()


def _torus(points: Tensor, ring: float, tube: float) -> Tensor:
    flat = points[:, :2].norm(dim=-1) - ring
    return (flat**2 + points[:, 2] ** 2).sqrt() - tube


def _union(*distances: Tensor) -> Tensor:
    return torch.stack(distances).amin(dim=0)


def _extrude(flat: Tensor, x: Tensor, half: float) -> Tensor:
    """A figure in the y-z plane with thickness 2 half along x."""
    q = torch.stack((flat, x.abs() - half), dim=-1)
    return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0)


def _polygon(points: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Exact signed distance (N,) to a closed polygon, points (N, 2)."""
    inside = torch.zeros(len(points), dtype=torch.bool)
    best = torch.full((len(points),), math.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        a, b = points.new_tensor((ax, ay)), points.new_tensor((bx, by))
        edge, to = b - a, points - a
        share = ((to @ edge) / (edge @ edge)).clamp(0, 1)
        best = torch.minimum(best, ((to - share[:, None] * edge) ** 2).sum(-1))
        crosses = (points[:, 1] >= min(ay, by)) & (points[:, 1] < max(ay, by))
        left = edge[0] * to[:, 1] - edge[1] * to[:, 0]
        inside ^= crosses & ((left > 0) if by > ay else (left < 0))
    return torch.where(inside, -best.sqrt(), best.sqrt())


def _mushroom(p: Tensor) -> Tensor:
    cap = torch.maximum(_sphere(_at(p, z=0.0), 0.42), -(p[:, 2] - 0.02))
    return _union(cap, _cylinder(_at(p, z=-0.2), 0.13, 0.23))


def _snowman(p: Tensor) -> Tensor:
    return _union(_sphere(_at(p, z=-0.23), 0.27), _sphere(_at(p, z=0.13), 0.19), _sphere(_at(p, z=0.38), 0.13))


def _legs(p: Tensor, x: float, y: float, z: float, half: tuple[float, float, float]) -> Tensor:
    folded = torch.stack((p[:, 0].abs(), p[:, 1].abs(), p[:, 2]), dim=-1)
    return _box(_at(folded, x, y, z), half)


def _table(p: Tensor) -> Tensor:
    return _union(_box(_at(p, z=0.24), (0.40, 0.34, 0.055)), _legs(p, 0.33, 0.27, -0.07, (0.055, 0.055, 0.27)))


def _chair(p: Tensor) -> Tensor:
    seat = _box(_at(p, z=-0.05), (0.26, 0.26, 0.05))
    back = _box(_at(p, x=-0.215, z=0.22), (0.05, 0.26, 0.27))
    return _union(seat, back, _legs(p, 0.21, 0.21, -0.27, (0.05, 0.05, 0.2)))


def _house(p: Tensor) -> Tensor:
    walls = _box(_at(p, z=-0.19), (0.30, 0.27, 0.23))
    gable = _polygon(p[:, 1:], [(-0.36, 0.0), (0.36, 0.0), (0.0, 0.36)])
    roof = torch.maximum(gable, p[:, 0].abs() - 0.36)
    door = _box(_at(p, x=0.30, z=-0.28), (0.12, 0.09, 0.15))
    chimney = _box(_at(p, x=-0.2, y=0.17, z=0.27), (0.06, 0.06, 0.15))
    return _union(torch.maximum(walls, -door), roof, chimney)


def _arrow(p: Tensor) -> Tensor:
    corners = [(0.0, 0.5), (-0.36, 0.06), (-0.14, 0.06), (-0.14, -0.48), (0.14, -0.48), (0.14, 0.06), (0.36, 0.06)]
    return _extrude(_polygon(p[:, 1:], corners), p[:, 0], 0.12)


def _star(p: Tensor) -> Tensor:
    corners = []
    for i in range(10):
        radius, angle = (0.52, 0.24)[i % 2], math.pi / 2 + i * math.pi / 5
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    slope = 0.9
    return (p[:, 0].abs() + slope * (_polygon(p[:, 1:], corners) - 0.02)) / math.sqrt(1 + slope**2)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("ball", lambda p: _sphere(p, 0.42), True),
        Shape("cone", lambda p: _capped_cone(p, 0.4, 0.0, 0.43), True),
        Shape("cylinder", lambda p: _cylinder(p, 0.29, 0.42), True),
        Shape("donut", lambda p: _torus(p, 0.33, 0.15), True),
        Shape("mushroom", _mushroom, True),
        Shape("snowman", _snowman, True),
        Shape("cube", lambda p: _box(p, (0.31, 0.31, 0.31)), False),
        Shape("table", _table, False),
        Shape("chair", _chair, False, front=True),
        Shape("house", _house, False, front=True),
        Shape("arrow", _arrow, False),
        Shape("star", _star, False),
    )
}
