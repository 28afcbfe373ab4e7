"""Signed distances of the solids in one colour: z up, front = +x, centred on the origin, inside radius 0.62."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio_rf.tiny.world.primitives import at, box, cylinder, extrude, polygon, sphere, union


def mushroom(p: Tensor) -> Tensor:
    """A half ball on a stem."""
    cap = torch.maximum(sphere(at(p, z=0.0), 0.42), -(p[:, 2] - 0.02))
    return union(cap, cylinder(at(p, z=-0.2), 0.13, 0.23))


def snowman(p: Tensor) -> Tensor:
    """Three balls."""
    return union(sphere(at(p, z=-0.23), 0.27), sphere(at(p, z=0.13), 0.19), sphere(at(p, z=0.38), 0.13))


def _legs(p: Tensor, x: float, y: float, z: float, half: tuple[float, float, float]) -> Tensor:
    folded = torch.stack((p[:, 0].abs(), p[:, 1].abs(), p[:, 2]), dim=-1)
    return box(at(folded, x, y, z), half)


def table(p: Tensor) -> Tensor:
    """A top on four legs."""
    return union(box(at(p, z=0.24), (0.40, 0.34, 0.055)), _legs(p, 0.33, 0.27, -0.07, (0.055, 0.055, 0.27)))


def chair(p: Tensor) -> Tensor:
    """A seat, a back and four legs; the back stands behind."""
    seat = box(at(p, z=-0.05), (0.26, 0.26, 0.05))
    back = box(at(p, x=-0.215, z=0.22), (0.05, 0.26, 0.27))
    return union(seat, back, _legs(p, 0.21, 0.21, -0.27, (0.05, 0.05, 0.2)))


def house(p: Tensor) -> Tensor:
    """Walls with a door in front, a gable roof and a chimney."""
    walls = box(at(p, z=-0.19), (0.30, 0.27, 0.23))
    gable = polygon(p[:, 1:], [(-0.36, 0.0), (0.36, 0.0), (0.0, 0.36)])
    roof = torch.maximum(gable, p[:, 0].abs() - 0.36)
    door = box(at(p, x=0.30, z=-0.28), (0.12, 0.09, 0.15))
    chimney = box(at(p, x=-0.2, y=0.17, z=0.27), (0.06, 0.06, 0.15))
    return union(torch.maximum(walls, -door), roof, chimney)


def arrow(p: Tensor) -> Tensor:
    """A flat arrow that points up."""
    corners = [(0.0, 0.5), (-0.36, 0.06), (-0.14, 0.06), (-0.14, -0.48), (0.14, -0.48), (0.14, 0.06), (0.36, 0.06)]
    return extrude(polygon(p[:, 1:], corners), p[:, 0], 0.12)


def star(p: Tensor) -> Tensor:
    """A bevelled star of five points."""
    corners = []
    for i in range(10):
        radius, angle = (0.52, 0.24)[i % 2], math.pi / 2 + i * math.pi / 5
        corners.append((radius * math.cos(angle), radius * math.sin(angle)))
    slope = 0.9
    return (p[:, 0].abs() + slope * (polygon(p[:, 1:], corners) - 0.02)) / math.sqrt(1 + slope**2)
