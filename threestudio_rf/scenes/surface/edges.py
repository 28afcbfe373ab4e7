"""Outlines with a gradient: pixels at an outline are blended by where its edge crosses between their centres.

Antialiasing of Laine et al. 2020 (nvdiffrast), with one difference: the edges of the outline are found from the mesh
instead of from the faces that the pixels see, so that faces smaller than a pixel have a gradient too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.scenes.surface.raster import NEAR, Screen, corners_of


class Edges(NamedTuple):
    """E edges of a mesh of F faces: their ends (2, E), the two faces at each (2, E), the third corners of these (2, E),
    whether both run the same way along the edge (E,), and the corners of all faces (3, F).

    An edge of one face, or of more than two, has the same face twice: it is always an outline."""

    ends: Tensor
    others: Tensor
    faces: Tensor
    alike: Tensor
    corners: Tensor

    @property
    def inner(self) -> Tensor:
        """Which edges lie between two faces (E,)."""
        return self.faces[0] != self.faces[1]


class Crossings(NamedTuple):
    """Where the outline crosses between the centres of two neighbouring pixels, K times: cells `near` on the side of
    the face and `far` beyond it, and the distance `t` in pixels from near to the edge, in [0, 1], with gradient."""

    near: Tensor
    far: Tensor
    t: Tensor


@torch.no_grad()
def edges_of(faces: Tensor) -> Edges:
    """The edges of faces (F, 3), each once."""
    size = int(faces.max()) + 1 if len(faces) else 1
    corners = faces.t().contiguous()
    short = corners.to(torch.int32 if size * size <= 1 << 31 else torch.int64)
    start, stop = short.view(-1), short.roll(-1, 0).view(-1)
    key, order = (torch.minimum(start, stop) * size + torch.maximum(start, stop)).sort(stable=True)
    new = torch.ones(len(key) + 1, dtype=torch.bool, device=faces.device)
    new[1:-1] = key[1:] != key[:-1]
    first = new.nonzero()[:, 0]
    second = first[:-1] + (first.diff() == 2)
    half = order.index_select(0, torch.cat((first[:-1], second))).view(2, -1)
    a, b = (end.index_select(0, half[0]).long() for end in (start, stop))
    others = short.roll(1, 0).view(-1).index_select(0, half.view(-1)).view_as(half).long()
    alike = (start < stop).index_select(0, half.view(-1)).view_as(half)
    ends = torch.stack((torch.minimum(a, b), torch.maximum(a, b)))
    return Edges(ends, others, half % max(len(faces), 1), alike[0] == alike[1], corners)


@torch.no_grad()
def outline(screen: Screen, edges: Edges) -> tuple[Tensor, Tensor]:
    """View (S,) and edge (S,) of the edges whose two faces lie on the same side on the screen: of two that run
    opposite ways along it, one shows its front and one its back."""
    index, views = edges.corners.view(-1), len(screen.x)
    x, y = (value.index_select(1, index).view(views, 3, -1) for value in screen[:2])
    x, y = x[:, 1:] - x[:, :1], y[:, 1:] - y[:, :1]
    front = (x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1]).sign_()
    front = front.index_select(1, edges.faces.view(-1)).view(views, 2, -1)
    same = front[:, 0] * front[:, 1]
    view, edge = (torch.where(edges.alike, same, -same) > 0).nonzero(as_tuple=True)
    corners = torch.cat((edges.ends, edges.others)).index_select(1, edge)
    near = (corners_of(screen.z, view, corners).amin(0) > NEAR).nonzero()[:, 0]
    return view.index_select(0, near), edge.index_select(0, near)


def crossings(screen: Screen, edges: Edges, depth: Tensor) -> Crossings:
    """Where outlines pass between a pixel that sees their face and a neighbour that sees something farther, or nothing.

    `depth` (B, H, W) is the distance along the viewing axis, infinite where nothing is seen. Steep edges cross between
    neighbours in a row, flat ones in a column, so that the blended pixels of an edge are those of an exact cover of
    the row or column through their centres.
    """
    view, edge = outline(screen, edges)
    points = torch.cat((edges.ends, edges.others[:1])).index_select(1, edge)
    x, y, z = (corners_of(value, view, points) for value in screen[:3])
    with torch.no_grad():
        steep = (x[1] - x[0]).abs() <= (y[1] - y[0]).abs()
    along, across = torch.where(steep, y, x), torch.where(steep, x, y)
    lines = torch.where(steep, screen.height, screen.width)
    index, line = _lines(along[:2].detach(), lines)
    (a, b, c), (u, v, w) = along.index_select(1, index), across.index_select(1, index)
    steep, view, z = steep.index_select(0, index), view.index_select(0, index), z[:2].index_select(1, index)
    share = (line + 0.5 - a) / (b - a)
    place = u + share * (v - u) - 0.5
    with torch.no_grad():
        pixel = place.floor()
        before = u + (c - a) / (b - a) * (v - u) > w
        distance = 1 / ((1 - share) / z[0] + share / z[1])
    low, inside = _cells(screen, view, steep, line, pixel.long())
    step = torch.where(steep, 1, screen.width)
    near, far = torch.where(before, low, low + step), torch.where(before, low + step, low)
    index = inside.nonzero()[:, 0]
    near, far, distance = (value.index_select(0, index) for value in (near, far, distance))
    flat = depth.reshape(-1)
    behind = flat.index_select(0, far)
    hides = ((flat.index_select(0, near) < behind) & (distance < behind)).nonzero()[:, 0]
    index, near, far = (value.index_select(0, hides) for value in (index, near, far))
    t = (place - pixel).index_select(0, index)
    t = torch.where(before.index_select(0, index), t, 1 - t)
    index = _outermost(near, far, t.detach(), depth.numel()).nonzero()[:, 0]
    return Crossings(*(value.index_select(0, index) for value in (near, far, t)))


def _outermost(near: Tensor, far: Tensor, t: Tensor, cells: int) -> Tensor:
    """Which of K crossings are the last between their two pixels: of a rough surface several folds may end there, and
    up to the last one it covers."""
    pair = torch.minimum(near, far) + torch.where((far - near).abs() == 1, 0, cells)
    last = t.new_zeros(2 * cells).scatter_reduce(0, pair, t, "amax")
    return t == last.index_select(0, pair)


def _lines(along: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
    """Edge (K,) and line (K,) of the pixel centres between the ends `along` (2, S); an end belongs to one edge only."""
    low, high = along.amin(0), along.amax(0)
    first = torch.minimum((low - 0.5).ceil().clamp(min=0), lines)
    count = (torch.minimum((high - 0.5).ceil(), lines) - first).clamp(min=0).long()
    index = torch.repeat_interleave(count)
    nth = torch.arange(len(index), device=index.device) - (count.cumsum(0) - count).index_select(0, index)
    return index, first.long().index_select(0, index) + nth


def _cells(screen: Screen, view: Tensor, steep: Tensor, line: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of the first pixel of each pair, and whether both are in the picture."""
    row, column = torch.where(steep, line, pixel), torch.where(steep, pixel, line)
    last = torch.where(steep, screen.width, screen.height) - 1
    return (view * screen.height + row) * screen.width + column, (pixel >= 0) & (pixel < last)


def antialias(maps: Tensor, found: Crossings) -> Tensor:
    """`maps` (C, B * H * W) with the pixels at outlines blended by the share that their neighbour's surface covers.

    Of the two pixels of a crossing the one whose square holds the edge takes |t - 1/2| of the other. Where several
    edges cross one pixel between it and its neighbours in a row, their shares add up, to 1 at the most, and so in a
    column; of row and column the larger sum counts. An outline of small faces near 45 degrees crosses both by turns,
    and counted twice it would cover pixels whose centre is outside, and bare others.
    """
    taken = found.t < 0.5
    target, source = torch.where(taken, found.near, found.far), torch.where(taken, found.far, found.near)
    share = (found.t - 0.5).abs()
    in_row = (source - target).abs() == 1
    place = torch.where(in_row, target, target + maps.shape[1])
    totals = share.new_zeros(2 * maps.shape[1]).index_add(0, place, share).view(2, -1)
    row, column = totals.index_select(1, target)
    share = share / torch.where(in_row, row, column).clamp(min=1) * (in_row == (row >= column))
    change = share * (maps.index_select(1, source) - maps.index_select(1, target))
    return maps.index_add(1, target, change)
