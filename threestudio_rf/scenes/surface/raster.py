"""A z-buffer rasteriser in plain torch: which triangle every pixel sees, and what is interpolated over it.

Which face a pixel sees is found without gradient; barycentric weights are then computed again, with gradient, for the
faces that are seen. Outlines get their gradient in `edges.py`. B views, V vertices, F faces, N fragments (pixels
that see a face); values are channel-first, (C, N), which on a CPU makes gathers and scatters flat and fast.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.scenes.camera import Camera

NEAR = 1e-2
"""A face with a vertex nearer to the camera's plane than this, or behind it, is not drawn."""
CHUNK = 1 << 22
"""Pairs of pixel and face that are looked at together."""


class Screen(NamedTuple):
    """Vertices as B cameras see them, each (B, V): pixels from the left and from the top (centres at k + 1/2), and the
    distance along the viewing axis, negative behind the camera."""

    x: Tensor
    y: Tensor
    z: Tensor
    height: int
    width: int


class Fragments(NamedTuple):
    """The pixels that see a face, ordered by `cell`, the place in the flattened (B, H, W)."""

    cell: Tensor  # (N,) int64
    view: Tensor  # (N,) int64
    face: Tensor  # (N,) int64


def project(vertices: Tensor, camera: Camera) -> Screen:
    """World points (V, 3) on the screens of B cameras; the exact inverse of `Camera.rays`, with gradient."""
    local = torch.einsum("bvi,bij->jbv", vertices - camera.position[:, None], camera.c2w)
    z = -local[2]
    focal = camera.height / (2 * torch.tan(torch.deg2rad(camera.fovy) / 2))
    scale = focal[:, None] / torch.where(z > NEAR, z, 1)
    x, y = camera.width / 2 + local[0] * scale, camera.height / 2 - local[1] * scale
    return Screen(x, y, z, camera.height, camera.width)


def corners_of(values: Tensor, view: Tensor, corners: Tensor) -> Tensor:
    """`values` (B, V) at the `corners` (K, N) of fragments seen in `view` (N,): (K, N)."""
    flat = view * values.shape[1] + corners
    return values.reshape(-1).index_select(0, flat.view(-1)).view_as(corners)


def edge_functions(x: Tensor, y: Tensor, px: Tensor, py: Tensor) -> Tensor:
    """Twice the signed areas (3, N) that a point (px, py) spans with the sides of triangles (3, N) opposite to each
    corner. Swapping two corners changes the sign and nothing else, in floating point too: no cracks, no holes."""
    x, y = x - px, y - py
    return torch.stack((x[1] * y[2] - y[1] * x[2], x[2] * y[0] - y[2] * x[0], x[0] * y[1] - y[0] * x[1]))


@torch.no_grad()
def rasterize(screen: Screen, faces: Tensor, *, cull: bool = False) -> Fragments:
    """The nearest of `faces` (F, 3) at the centre of every pixel, of equally near ones the first.

    Both sides of a face are seen, or with `cull` only the one from which its corners run counter clockwise, which is
    the same picture of a closed mesh in half the time. A centre on an edge belongs to both faces. Faces without area,
    with a vertex that is not finite, or nearer than `NEAR`, are left out. ValueError for faces that are not (F, 3)
    int64.
    """
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype != torch.int64:
        raise ValueError(f"faces: got {tuple(faces.shape)} {faces.dtype}, expected (F, 3) int64")
    empty = torch.iinfo(torch.int64).max
    pixels = screen.height * screen.width
    nearest = torch.full((len(screen.x) * pixels,), empty, device=faces.device)
    index, views = faces.t().reshape(-1), len(screen.x)
    corners = torch.stack([value.index_select(1, index).view(views, 3, -1).movedim(1, 0) for value in screen[:2]])
    seen = _before(screen, index)
    if cull:
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        seen = seen & (a[0] * b[1] < a[1] * b[0])
    drawn, box = boxes(corners, screen.height, screen.width, seen)
    count = (box[2].long() * box[3]).cumsum(0)
    start = 0
    while start < len(drawn):
        before = int(count[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(count, before + CHUNK, right=True)))
        part = slice(start, stop)
        pixel, e, place = covered(corners.reshape(6, -1), drawn[part], box[:, part])
        view = place // len(faces)
        face = place - view * len(faces)
        z = corners_of(screen.z, view, index.view(3, -1).index_select(1, face))
        depth = (e.sum(0) / (e / z).sum(0)).float()
        cell = (view * screen.height + pixel[1]) * screen.width + pixel[0]
        # the bits of a positive float32 order like the number
        nearest.scatter_reduce_(0, cell, (depth.view(torch.int32).long() << 32) | face, "amin")
        start = stop
    cell = (nearest != empty).nonzero()[:, 0]
    return Fragments(cell, cell // pixels, nearest.index_select(0, cell) & 0xFFFFFFFF)


def _before(screen: Screen, index: Tensor) -> Tensor:
    """Which faces, their corners (3 F,), have all of them before `NEAR`, (B, F)."""
    before = screen.z > NEAR
    if bool(before.all()):
        return before.new_ones(len(before), len(index) // 3)
    return before.index_select(1, index).view(len(before), 3, -1).all(1)


def boxes(corners: Tensor, height: int, width: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Of the `chosen` (...) triangles `corners` (x y, 3, ...) in pixels: the places (K,) in the flattened rest of those
    with a pixel centre in their box on the screen, and the boxes (4, K) int32: left, top, columns, rows."""
    low, high = corners.amin(1).view(2, -1), corners.amax(1).view(2, -1)
    limit = low.new_tensor([width, height])[:, None]
    first = torch.minimum((low - 0.5).ceil_().clamp_(min=0), limit)
    size = torch.minimum((high - 0.5).floor_().add_(1), limit).sub_(first)
    place = ((size[0] > 0) & (size[1] > 0) & chosen.view(-1)).nonzero()[:, 0]
    return place, torch.cat((first, size)).index_select(1, place).int()


def covered(corners: Tensor, place: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the triangles at `place` (K,) of `corners` (6, M), the x of the three corners and their y, with their `box`
    (4, K): column and row (2, P) of every pixel centre inside one, `edge_functions` (3, P) there, its place (P,)."""
    count = box[2] * box[3]
    index = torch.repeat_interleave(count)
    before = count.cumsum(0, dtype=count.dtype) - count
    nth = torch.arange(len(index), dtype=count.dtype, device=index.device) - before.index_select(0, index)
    left, top, columns, _ = box.index_select(1, index)
    down = nth // columns
    pixel = torch.stack((left + nth - down * columns, top + down))
    place = place.index_select(0, index)
    x, y = corners.index_select(1, place).view(2, 3, -1)
    e = edge_functions(x, y, pixel[0] + 0.5, pixel[1] + 0.5)
    low, high = e.amin(0), e.amax(0)
    inside = (((low >= 0) & (high > 0)) | ((high <= 0) & (low < 0))).nonzero()[:, 0]
    return pixel.index_select(1, inside), e.index_select(1, inside), place.index_select(0, inside)


def barycentric(screen: Screen, faces: Tensor, fragments: Fragments) -> Tensor:
    """Perspective-correct weights (3, N) of the corners at the pixel centres, with gradient to the vertices."""
    corners = faces.index_select(0, fragments.face).t().contiguous()
    x, y, z = (corners_of(value, fragments.view, corners) for value in screen[:3])
    row = fragments.cell // screen.width
    column = fragments.cell - row * screen.width
    e = edge_functions(x, y, column + 0.5, row - fragments.view * screen.height + 0.5)
    w = e / z
    return w / w.sum(0)


def interpolate(values: Tensor, faces: Tensor, fragments: Fragments, weights: Tensor) -> Tensor:
    """Values (C, N) at the fragments from `values` (C, V) of the vertices."""
    corners = faces.index_select(0, fragments.face).t().reshape(-1)
    return torch.stack([(weights * channel.index_select(0, corners).view_as(weights)).sum(0) for channel in values])


def spread(values: Tensor, fragments: Fragments, screen: Screen) -> Tensor:
    """Maps (C, B * H * W) of values (C, N) at the fragments, 0 elsewhere."""
    maps = values.new_zeros(len(values), len(screen.x) * screen.height * screen.width)
    return maps.index_copy(1, fragments.cell, values)
