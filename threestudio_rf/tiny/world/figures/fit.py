"""The lead figure of an object: the overlap of its volume with the true solid, wherever and however large it stands.

A melted shape has a low overlap in 3D even where its outlines are nearly right and the judge knows its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.tiny.world.shapes import Shape

RESOLUTION = 64
RATINGS = ((0.85, "good"), (0.70, "fair"), (0.0, "poor"))
"""What a person would say of a volume IoU of at least so much."""


class Volume(NamedTuple):
    """Where an object is solid: (R, R, R) bool, axes x y z, at the places `axis` (R,) of each."""

    inside: Tensor
    axis: Tensor

    def points(self) -> Tensor:
        """The grid's points (R, R, R, 3)."""
        return torch.stack(torch.meshgrid(self.axis, self.axis, self.axis, indexing="ij"), dim=-1)

    def thinned(self, every: int) -> Volume:
        """Every so-many-th point of each axis."""
        return Volume(self.inside[::every, ::every, ::every], self.axis[::every])


def true_volume(shape: Shape, radius: float, resolution: int = RESOLUTION) -> Volume:
    """The true solid on `resolution` equal steps over [-radius, radius]."""
    empty = torch.zeros((resolution,) * 3, dtype=torch.bool)
    volume = Volume(empty, torch.linspace(-radius, radius, resolution))
    return volume._replace(inside=shape.sdf(volume.points().reshape(-1, 3)).reshape(empty.shape) < 0)


class Fit(NamedTuple):
    """The best overlap, and where the truth then stands: turned about z by `turn` degrees, scaled, shifted along z."""

    iou: float
    scale: float = 1.0
    shift: float = 0.0
    turn: float = 0.0


def rating(iou: float) -> str:
    """The word for a volume IoU."""
    return next(word for least, word in RATINGS if iou >= least)


def filled(inside: Tensor) -> Tensor:
    """The same solid (R, R, R) without cavities: nobody sees what is inside an object, so nothing asks for density."""
    from scipy.ndimage import binary_fill_holes

    return torch.from_numpy(binary_fill_holes(inside.numpy()))


def borders(volume: Volume) -> list[str]:
    """The sides of the cube, "-x" to "+z", that a solid touches: it may be cut flat there."""
    touched = []
    for axis, name in enumerate("xyz"):
        touched += [f"-{name}"] * bool(volume.inside.select(axis, 0).any())
        touched += [f"+{name}"] * bool(volume.inside.select(axis, len(volume.inside) - 1).any())
    return touched


def placed(points: Tensor, fit: Fit) -> Tensor:
    """Points (..., 3) of the world in the coordinates of a shape that stands as `fit` says; the distance there is that
    of the world over `fit.scale`."""
    x, y, z = ((points - points.new_tensor((0.0, 0.0, fit.shift))) / fit.scale).unbind(-1)
    cos, sin = math.cos(math.radians(fit.turn)), math.sin(math.radians(fit.turn))
    return torch.stack((cos * x + sin * y, cos * y - sin * x, z), dim=-1)


def overlap(volume: Volume, shape: Shape, fit: Fit) -> float:
    """Intersection over union of a volume and the true solid at the pose of `fit`; 0 where both are empty."""
    true = shape.sdf(placed(volume.points().reshape(-1, 3), fit)).reshape(volume.inside.shape) < 0
    either = (true | volume.inside).sum()
    return float((true & volume.inside).sum() / either) if either else 0.0


def _descend(
    value: Callable[[Fit], Fit], best: Fit, *, ends: tuple[float, float], turns: bool, step: float, finest: float
) -> Fit:
    """Take the best neighbour until none is better, then halve the step: of the scale (relative), where the shape's
    lower or upper end (its z) stays where it is, of the shift and of the turn."""
    while step >= finest:
        scales = (best.scale * (1 + step), best.scale / (1 + step))
        around = [best._replace(scale=s, shift=best.shift + (best.scale - s) * z) for s in scales for z in ends]
        around += [best._replace(shift=best.shift + sign * 0.5 * step) for sign in (1, -1)]
        around += [best._replace(turn=best.turn + sign * 100 * step) for sign in (1, -1)] if turns else []
        better = max(value(fit) for fit in around)
        if better.iou > best.iou:
            best = better
        else:
            step /= 2
    return best


def fit_volume(volume: Volume, shape: Shape) -> Fit:
    """Maximise the IoU of a volume with the true solid over scale (1/2 to 2), shift along z (up to 0.4) and, for a
    shape that has corners but no front, turn about z. A front is not searched for: it has to be in front. An empty
    volume has 0.

    The start has the same volume and height of the centre; turns are tried every 15 degrees; the search is done on a
    coarse grid and ended on the given one.
    """
    if not volume.inside.any():
        return Fit(0.0)
    turns, coarse = not (shape.revolution or shape.front), volume.thinned(2)

    def search(grid: Volume) -> Callable[[Fit], Fit]:
        @cache
        def at(scale: float, shift: float, turn: float) -> Fit:
            good = 0.5 <= scale <= 2 and abs(shift) <= 0.4
            fit = Fit(-1.0, scale, shift, turn)
            return fit._replace(iou=overlap(grid, shape, fit)) if good else fit

        return lambda fit: at(fit.scale, fit.shift, fit.turn)

    rough, points = search(coarse), coarse.points()
    true = shape.sdf(points.reshape(-1, 3)).reshape(coarse.inside.shape) < 0
    size = float((coarse.inside.sum() / true.sum().clamp_min(1)) ** (1 / 3))
    size = min(max(size, 0.5), 2.0)
    height = float(points[..., 2][coarse.inside].mean()) if coarse.inside.any() else 0.0
    lift = min(max(height - size * float(points[..., 2][true].mean()), -0.4), 0.4)
    starts = [(1.0, 0.0), (size, 0.0), (size, lift)]
    angles = [float(turn) for turn in range(0, 360, 15)] if turns else [0.0]
    best = max(rough(Fit(0.0, scale, shift, turn)) for scale, shift in starts for turn in angles)
    heights = points[..., 2][true]
    ends = (float(heights.min()), float(heights.max()))
    best = _descend(rough, best, ends=ends, turns=turns, step=0.08, finest=0.02)
    exact = search(volume)
    return _descend(exact, max(exact(best), exact(Fit(0.0))), ends=ends, turns=turns, step=0.02, finest=0.005)
