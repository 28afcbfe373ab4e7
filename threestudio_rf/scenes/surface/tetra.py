"""Marching tetrahedra with gradient (Doi and Koide 1991; DMTet, Shen et al. 2021): a signed distance on a grid becomes
a closed mesh whose vertices depend on the distances and on where the grid's own vertices lie.

Every cube of the grid is cut into the six tetrahedra of Kuhn 1960, which meet along one diagonal; neighbouring cubes
match. All edges of tetrahedra then run from a grid vertex in one of seven directions, which gives each crossed edge a
number without sorting. R cubes along each side, (R + 1)^3 grid vertices, index (x, y, z) with z fastest.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = tuple(itertools.product((0, 1), repeat=3))[1:]
"""The seven directions of the edges."""
PATHS = tuple(
    tuple(tuple(int(axis in order[:k]) for axis in range(3)) for k in range(4))
    for order in itertools.permutations(range(3))
)
"""The corners of the six tetrahedra in their cube: the paths along its edges from (0, 0, 0) to (1, 1, 1)."""
EDGES = tuple(itertools.combinations(range(4), 2))
"""The edges of a tetrahedron, along its path."""


class Triangles(NamedTuple):
    """A surface: vertices (V, 3), and faces (F, 3) int64 whose corners run counter clockwise from outside."""

    vertices: Tensor
    faces: Tensor


def grid_points(resolution: int, radius: float) -> Tensor:
    """The grid's vertices ((R + 1)^3, 3) at equal steps over [-radius, radius]^3."""
    axis = torch.linspace(-radius, radius, resolution + 1)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)


def _faces_of(path: tuple[tuple[int, ...], ...], code: int) -> list[tuple[int, ...]]:
    """The triangles, as edges of the tetrahedron, between its corners inside (bits of `code`) and outside."""
    inside, outside = ([k for k in range(4) if code >> k & 1 == bit] for bit in (1, 0))
    if not inside or not outside:
        return []
    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        ring = [(a, c), (a, d), (b, d), (b, c)]
        triangles = [ring[:3], [ring[0], ring[2], ring[3]]]
    else:
        triangles = [[(a, b) for a in inside for b in outside]]
    corner = torch.tensor(path, dtype=torch.float64)
    out = corner[outside].mean(0) - corner[inside].mean(0)
    result = []
    for triangle in triangles:
        p, q, r = (corner[list(ends)].mean(0) for ends in triangle)
        ordered = triangle if torch.linalg.cross(q - p, r - p) @ out > 0 else triangle[::-1]
        result.append(tuple(EDGES.index((min(ends), max(ends))) for ends in ordered))
    return result


@cache
def _table() -> Tensor:
    """Triangles (6, 16, 2, 3) of each tetrahedron and code, -1 where there is none."""
    table = torch.full((6, 16, 2, 3), -1)
    for (kind, path), code in itertools.product(enumerate(PATHS), range(16)):
        for k, triangle in enumerate(_faces_of(path, code)):
            table[kind, code, k] = torch.tensor(triangle)
    return table


CORNERS = torch.tensor(PATHS)
STARTS = torch.tensor([[path[a] for a, _ in EDGES] for path in PATHS])
DIRECTIONS = torch.tensor(
    [[STEPS.index(tuple(q - p for p, q in zip(path[a], path[b], strict=True))) for a, b in EDGES] for path in PATHS]
)


def march_tetrahedra(points: Tensor, distance: Tensor, resolution: int) -> Triangles:
    """The zero set of `distance` ((R + 1)^3,), negative inside, on a grid whose vertices lie at `points`
    ((R + 1)^3, 3): closed, every edge between two faces, oriented outwards.

    A vertex on the edge from a (inside) to b is (p_a s_b - p_b s_a) / (s_b - s_a), with gradient to points and
    distances; a difference below a millionth of a cell counts as that, so that the gradient stays finite. The grid's
    outermost vertices count as outside. ValueError for other shapes.
    """
    size = resolution + 1
    if points.shape != (size**3, 3) or distance.shape != (size**3,):
        raise ValueError(
            f"points, distance: got {tuple(points.shape)}, {tuple(distance.shape)}, "
            f"expected ({size**3}, 3), ({size**3},) at resolution {resolution}"
        )
    with torch.no_grad():
        inside = _inside(distance, size)
        start, direction, faces = _crossed(inside)
        stop = start + (torch.tensor(STEPS, device=points.device) @ _strides(size, points.device))[direction]
        reach = float((points[-1] - points[0]).abs().max()) / resolution
    low, high = distance.index_select(0, start), distance.index_select(0, stop)
    turned = ~inside.view(-1).index_select(0, start)
    inner, outer = torch.where(turned, high, low), torch.where(turned, low, high)
    outer = outer.clamp(min=0)  # an outermost vertex is outside whatever its value
    share = outer / (outer - inner).clamp(min=1e-6 * reach)
    a, b = torch.where(turned, stop, start), torch.where(turned, start, stop)
    from_, to = points.index_select(0, a), points.index_select(0, b)
    return Triangles(to + (from_ - to) * share[:, None], faces)


def _strides(size: int, device: torch.device) -> Tensor:
    return torch.tensor([size * size, size, 1], device=device)


def _inside(distance: Tensor, size: int) -> Tensor:
    """Which vertices are inside, (R + 1, R + 1, R + 1); the outermost never."""
    inside = torch.zeros((size,) * 3, dtype=torch.bool, device=distance.device)
    core = slice(1, -1)
    inside[core, core, core] = (distance.view((size,) * 3) < 0)[core, core, core]
    return inside


def _mixed(inside: Tensor) -> Tensor:
    """The first corners (M,) of the cubes that have corners inside and outside."""
    some = every = inside
    for axis in range(3):
        n = some.shape[axis] - 1
        some = some.narrow(axis, 0, n) | some.narrow(axis, 1, n)
        every = every.narrow(axis, 0, n) & every.narrow(axis, 1, n)
    return (some & ~every).nonzero() @ _strides(len(inside), inside.device)


def _crossed(inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The crossed edges, start (V,) and direction (V,), and the faces (F, 3) between them."""
    device, size = inside.device, len(inside)
    strides, base = _strides(size, device), _mixed(inside)
    corners = base[:, None, None] + (CORNERS.to(device) @ strides)
    bits = torch.tensor([1, 2, 4, 8], device=device)
    code = (inside.view(-1)[corners] * bits).sum(-1)
    cube, kind = ((code > 0) & (code < 15)).nonzero(as_tuple=True)
    edges = _table().to(device)[kind, code[cube, kind]]
    which, half = (edges[..., 0] >= 0).nonzero(as_tuple=True)
    kind, edges = kind[which, None], edges[which, half]
    first = base[cube[which], None] + (STARTS.to(device) @ strides)[kind, edges]
    number = first * len(STEPS) + DIRECTIONS.to(device)[kind, edges]
    used = torch.zeros(size**3 * len(STEPS), dtype=torch.bool, device=device)
    used[number.view(-1)] = True
    crossed = used.nonzero()[:, 0]
    place = crossed.new_empty(len(used)).index_copy_(0, crossed, torch.arange(len(crossed), device=device))
    return crossed // len(STEPS), crossed % len(STEPS), place[number]
