"""Signed distances of the solids: z up, front = +x, centred on the origin, inside radius 0.62.

Solids in one colour are distances themselves; those with parts in fixed colours of their own return their parts as
(signed distance, sRGB colour), where the colour of the prompt is None.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio_rf.tiny.world.primitives import (
    Distance,
    at,
    box,
    capped_cone,
    cylinder,
    ellipsoid,
    extrude,
    polygon,
    sphere,
    torus,
    union,
)

RGB = tuple[float, float, float]
Painted = tuple[tuple[Distance, RGB | None], ...]

DARK, SLATE, GLASS = (0.12, 0.12, 0.14), (0.26, 0.28, 0.36), (0.55, 0.80, 0.92)
BARK, COFFEE, CREAM = (0.42, 0.26, 0.12), (0.30, 0.17, 0.09), (0.94, 0.91, 0.82)
BEAK, LIGHT = (0.98, 0.52, 0.08), (0.98, 0.93, 0.62)


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


def _about_y(p: Tensor) -> Tensor:
    """Points in coordinates whose third axis is y, so that a cylinder lies along y."""
    return p[:, [0, 2, 1]]


def _about_x(p: Tensor) -> Tensor:
    """Points in coordinates whose third axis is x."""
    return p[:, [1, 2, 0]]


def _folded(p: Tensor) -> Tensor:
    """Points with x and y mirrored into the positive quarter: a part there stands in all four corners."""
    return torch.cat((p[:, :2].abs(), p[:, 2:]), dim=-1)


def _mirrored(p: Tensor) -> Tensor:
    """Points with y mirrored to the positive side: a part there stands on both sides."""
    return torch.stack((p[:, 0], p[:, 1].abs(), p[:, 2]), dim=-1)


def car() -> Painted:
    """A body with a cabin, dark wheels and windows, lights in front."""
    outline = [(-0.36, 0.0), (0.22, 0.0), (0.08, 0.24), (-0.27, 0.24)]
    glass = [(-0.352, 0.05), (0.21, 0.05), (0.118, 0.19), (-0.305, 0.19)]

    def body(p: Tensor) -> Tensor:
        cabin = extrude(polygon(p[:, [0, 2]], outline), p[:, 1], 0.20)
        return union(box(at(p, z=-0.10), (0.50, 0.24, 0.12), 0.05), cabin)

    def windows(p: Tensor) -> Tensor:
        return extrude(polygon(p[:, [0, 2]], glass), p[:, 1], 0.212)

    def wheels(p: Tensor) -> Tensor:
        return cylinder(_about_y(at(_folded(p), 0.29, 0.215, -0.20)), 0.125, 0.055)

    def lights(p: Tensor) -> Tensor:
        return sphere(at(_mirrored(p), 0.475, 0.15, -0.08), 0.055)

    return ((body, None), (windows, DARK), (wheels, DARK), (lights, LIGHT))


def tree() -> Painted:
    """A fir of three cones on a brown trunk."""

    def crown(p: Tensor) -> Tensor:
        low = capped_cone(at(p, z=-0.09), 0.38, 0.10, 0.15)
        middle = capped_cone(at(p, z=0.13), 0.30, 0.07, 0.15)
        return union(low, middle, capped_cone(at(p, z=0.37), 0.22, 0.0, 0.17))

    return ((crown, None), (lambda p: cylinder(at(p, z=-0.37), 0.085, 0.17), BARK))


def rocket() -> Painted:
    """A slim body with a pointed nose, four dark fins and a round window in front."""

    def body(p: Tensor) -> Tensor:
        return union(cylinder(at(p, z=-0.08), 0.17, 0.27, 0.03), capped_cone(at(p, z=0.36), 0.17, 0.0, 0.19))

    def fins(p: Tensor) -> Tensor:
        corners = [(0.12, -0.10), (0.33, -0.42), (0.33, -0.52), (0.12, -0.36)]
        across = extrude(polygon(torch.stack((p[:, 0].abs(), p[:, 2]), dim=-1), corners), p[:, 1], 0.03)
        return union(across, extrude(polygon(torch.stack((p[:, 1].abs(), p[:, 2]), dim=-1), corners), p[:, 0], 0.03))

    def window(p: Tensor) -> Tensor:
        return cylinder(_about_x(at(p, x=0.15, z=0.06)), 0.085, 0.045)

    return ((body, None), (fins, DARK), (window, GLASS))


def cup() -> Painted:
    """A cup of coffee, its handle at the right."""

    def body(p: Tensor) -> Tensor:
        wall = torch.maximum(cylinder(p, 0.30, 0.32), -cylinder(at(p, z=0.25), 0.25, 0.40))
        ring = torus(_about_x(at(p, y=0.30)), 0.17, 0.045)
        return union(wall, torch.maximum(ring, -(p[:, 1] - 0.27)))

    return ((body, None), (lambda p: cylinder(at(p, z=0.04), 0.255, 0.20), COFFEE))


def lamp() -> Painted:
    """A shade on a dark pole and foot."""

    def stand(p: Tensor) -> Tensor:
        return union(cylinder(at(p, z=-0.46), 0.21, 0.035), cylinder(at(p, z=-0.18), 0.035, 0.30))

    return ((lambda p: capped_cone(at(p, z=0.24), 0.36, 0.17, 0.21), None), (stand, DARK))


def boat() -> Painted:
    """A hull with its bow in front, a brown mast and two white sails."""
    deck = [(0.50, 0.0), (0.22, 0.20), (-0.40, 0.17), (-0.40, -0.17), (0.22, -0.20)]

    def hull(p: Tensor) -> Tensor:
        sides = (polygon(p[:, :2], deck) - 0.55 * (p[:, 2] + 0.15)) / (1 + 0.55**2) ** 0.5
        return torch.maximum(sides, (p[:, 2] + 0.265).abs() - 0.115)

    def sails(p: Tensor) -> Tensor:
        flat = p[:, [0, 2]]
        main = polygon(flat, [(-0.04, -0.08), (-0.04, 0.47), (-0.38, -0.08)])
        jib = polygon(flat, [(0.04, -0.08), (0.04, 0.36), (0.32, -0.08)])
        return extrude(union(main, jib), p[:, 1], 0.025)

    return ((hull, None), (lambda p: cylinder(at(p, z=0.16), 0.035, 0.36), BARK), (sails, CREAM))


def castle() -> Painted:
    """Four towers with slate roofs around a keep, a dark gate in front."""

    def walls(p: Tensor) -> Tensor:
        towers = cylinder(at(_folded(p), 0.26, 0.26, -0.07), 0.115, 0.29)
        return union(box(at(p, z=-0.16), (0.27, 0.27, 0.20)), towers)

    def roofs(p: Tensor) -> Tensor:
        return capped_cone(at(_folded(p), 0.26, 0.26, 0.325), 0.15, 0.0, 0.115)

    def gate(p: Tensor) -> Tensor:
        return box(at(p, x=0.265, z=-0.23), (0.02, 0.085, 0.13), 0.005)

    return ((walls, None), (roofs, SLATE), (gate, DARK))


def duck() -> Painted:
    """A round body with a head, an orange beak in front and two dark eyes."""

    def body(p: Tensor) -> Tensor:
        tail = ellipsoid(at(p, x=-0.36, z=-0.02), (0.13, 0.12, 0.09))
        return union(ellipsoid(at(p, z=-0.18), (0.40, 0.28, 0.24)), tail, sphere(at(p, x=0.20, z=0.20), 0.19))

    def beak(p: Tensor) -> Tensor:
        return ellipsoid(at(p, x=0.41, z=0.17), (0.12, 0.10, 0.05))

    def eyes(p: Tensor) -> Tensor:
        return sphere(at(_mirrored(p), 0.33, 0.105, 0.27), 0.042)

    return ((body, None), (beak, BEAK), (eyes, DARK))
