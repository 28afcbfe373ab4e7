"""What no view can see of a solid: hollows, and caves that lie around a corner."""

from __future__ import annotations

import itertools

import numpy as np

SLOPES = tuple(k / 3 for k in range(-3, 4))
"""Slopes of the lines of sight against their axis: 294 directions, neighbours at most 19 degrees apart."""


def hidden(solid: np.ndarray) -> np.ndarray:
    """The empty cells of a boolean volume (X, Y, Z) that nobody sees from outside: enclosed hollows, and where no line
    of sight, by `SLOPES` against an axis, leads out through empty cells only. No cell of a hole that one can look
    through along such a line is among them.
    """
    from scipy.ndimage import binary_fill_holes

    unseen = np.zeros_like(solid)
    if solid.any():
        box = tuple(slice(places.min(), places.max() + 1) for places in solid.nonzero())
        inside = solid[box]
        unseen[box] = (binary_fill_holes(inside) | ~_seen(~inside)) & ~inside
    return unseen


def _seen(free: np.ndarray) -> np.ndarray:
    """Which cells are seen from outside of a volume whose `free` cells let light through."""
    seen = np.zeros_like(free)
    for axis, backwards in itertools.product(range(3), (False, True)):
        planes = np.moveaxis(free, axis, 0), np.moveaxis(seen, axis, 0)
        through, out = (volume[::-1] if backwards else volume for volume in planes)
        for slopes in itertools.product(SLOPES, repeat=2):
            sight, before = np.ones(through.shape[1:], dtype=bool), (0, 0)
            for depth in range(len(through)):
                at = round(depth * slopes[0]), round(depth * slopes[1])
                sight = _moved(sight, at[0] - before[0], at[1] - before[1]) & through[depth]
                out[depth] |= sight
                before = at
    return seen


def _moved(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A plane shifted by at most one cell along each axis; what comes in from outside is seen."""
    for axis, step in enumerate((rows, columns)):
        if step:
            plane = np.roll(plane, step, axis)
            plane[(slice(None),) * axis + (0 if step > 0 else -1,)] = True
    return plane
