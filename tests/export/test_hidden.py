"""What is hidden in a solid, against lines of sight that are followed one by one.

Seen to fail: five sides looked from instead of six; lines that forget what stood in their way; shifts that bring in
darkness from outside; solid cells counted as hidden; hollows left that are open along a diagonal between two cells.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from threestudio_rf.export.hidden import SLOPES, hidden


def block(size: int = 15) -> np.ndarray:
    """A cube two cells from the border."""
    solid = np.zeros((size,) * 3, dtype=bool)
    solid[2:-2, 2:-2, 2:-2] = True
    return solid


def followed(solid: np.ndarray, cell: tuple[int, ...]) -> bool:
    """Whether a line from a cell outwards meets nothing solid: each plane where the line that comes in would be."""
    for axis, sign in itertools.product(range(3), (1, -1)):
        others = [k for k in range(3) if k != axis]
        to_side = solid.shape[axis] - 1 - cell[axis] if sign > 0 else cell[axis]
        for slopes in itertools.product(SLOPES, repeat=2):
            free = True
            for back in range(1, to_side + 1):
                place = [0, 0, 0]
                place[axis] = cell[axis] + sign * back
                for k, slope in zip(others, slopes, strict=True):
                    place[k] = cell[k] - round(to_side * slope) + round((to_side - back) * slope)
                if all(0 <= p < n for p, n in zip(place, solid.shape, strict=True)) and solid[tuple(place)]:
                    free = False
                    break
            if free:
                return True
    return False


def test_it_is_what_no_line_of_sight_reaches_and_what_is_enclosed() -> None:
    draws = np.random.default_rng(0)
    caves, sponge = draws.random((11, 12, 13)) > 0.3, draws.random((9, 11, 10)) > 0.4
    caves[2:-2, 2:-2, 2:-2] = True
    caves[3:-3, 3:-3, 3:-3] = draws.random((5, 6, 7)) > 0.5
    caves[5, 5, :5] = False
    found = []
    for solid in (caves, sponge):
        solid[0, 0, 0] = solid[-1, -1, -1] = True  # the box of the solid is the volume
        dark, enclosed = np.zeros_like(solid), ndimage.binary_fill_holes(solid) & ~solid
        for cell in np.argwhere(~solid):
            dark[tuple(cell)] = not followed(solid, tuple(int(x) for x in cell))
        assert np.array_equal(hidden(solid), dark | enclosed)
        found.append([part.sum() for part in (dark & ~enclosed, enclosed & ~dark, ~solid & ~dark & ~enclosed)])
    assert min(np.sum(found, axis=0)) > 0


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("flip", [False, True])
def test_a_cave_around_a_corner_is_hidden_and_a_straight_hole_is_not(axis: int, flip: bool) -> None:
    hole, cave = block(), block()
    hole[7, 7, :] = False
    cave[7, 7, :8] = False
    inner = np.zeros_like(cave)
    inner[4:7, 7, 7] = True  # from the end of a hole it goes to the side
    cave &= ~inner
    for solid, unseen in ((hole, np.zeros_like(hole)), (cave, inner)):
        turned, wanted = np.moveaxis(solid, 2, axis), np.moveaxis(unseen, 2, axis)
        if flip:
            turned, wanted = np.flip(turned, axis), np.flip(wanted, axis)
        found = hidden(turned)
        assert not (found & turned).any()
        assert found[wanted].sum() >= wanted.sum() - 1 and not (found & ~wanted).any()


def test_a_slanting_hole_is_seen_into_from_the_side() -> None:
    solid = np.ones((12, 12, 12), dtype=bool)
    for plane in range(2, 10):
        solid[plane, round(plane / 3) - 1, 6] = False
    solid[5, 0, 6] = solid[8, 1, 6] = False  # one hole by the sides of its cells too
    assert not hidden(solid)[9, 2, 6]
    solid[5, 0:2, 6] = True
    assert hidden(solid)[9, 2, 6]


def test_nothing_is_hidden_where_nothing_is() -> None:
    assert not hidden(np.zeros((4, 4, 4), dtype=bool)).any()
    assert not hidden(np.ones((4, 4, 4), dtype=bool)).any()
