"""Meshes from densities: marching cubes with an automatic level, closed, oriented outwards, with vertex colours.

Marching cubes: Lorensen and Cline 1987, in the topologically consistent form of Lewiner et al. 2003 (scikit-image).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.export.hidden import hidden
from threestudio_rf.export.shell import batches, shell_colours, shell_depth
from threestudio_rf.export.tidy import decimated, smoothed, without_specks


class EmptyGeometryError(ValueError):
    """The density has no surface at the level, or a mesh has no faces."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with colours: vertices (V, 3) in the scene's coordinates (z up, front +x), faces (F, 3) counter
    clockwise from outside, colours (V, 3) as sRGB in [0, 1]; all on the CPU. `level` is the density whose surface it
    is, where it is one of a density."""

    vertices: Tensor
    faces: Tensor
    colours: Tensor
    level: float | None = None

    @property
    def volume(self) -> float:
        """Enclosed volume by the divergence theorem, positive when the faces look outwards."""
        a, b, c = self.vertices.double()[self.faces].unbind(dim=1)
        return float((a * torch.linalg.cross(b, c)).sum() / 6)

    @property
    def normals(self) -> Tensor:
        """Unit normals of the vertices (V, 3), of the faces around each weighted by area; up where there is none."""
        return vertex_normals(self.vertices, self.faces)

    @property
    def curvature(self) -> Tensor:
        """Mean curvature of the vertices (V,), of a ball 1 / radius, smoothed over their neighbours."""
        return vertex_curvature(self.vertices, self.normals, self.faces)

    def normalised(self) -> Mesh:
        """Centred on the middle of its bounding box, the longest side of which becomes 1."""
        low, high = self.vertices.amin(dim=0), self.vertices.amax(dim=0)
        return replace(self, vertices=(self.vertices - (low + high) / 2) / (high - low).amax())


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (V, 3) of vertices (V, 3), the sum over the faces (F, 3) around each weighted by their area; +z for
    a vertex without a face or with faces of no area."""
    a, b, c = vertices.double()[faces].unbind(dim=1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices, dtype=torch.float64)
    for corner in faces.unbind(dim=1):
        total.index_add_(0, corner, normal)
    length = total.norm(dim=-1, keepdim=True)
    up = total.new_tensor((0.0, 0.0, 1.0)).expand_as(total)
    return torch.where(length > 0, total / length.clamp_min(torch.finfo(torch.float64).tiny), up).float()


def vertex_curvature(vertices: Tensor, normals: Tensor, faces: Tensor, *, rounds: int = 3) -> Tensor:
    """Mean curvature (V,) of vertices (V, 3) with unit `normals` (V, 3): half the divergence of the normals, linear in
    each of the faces (F, 3), averaged at the vertices by area and `rounds` times more; 0 where no face is."""
    corners, n = vertices.double()[faces], normals.double()[faces]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = across.norm(dim=-1).clamp_min(1e-20)
    opposite = corners.roll(1, 1) - corners.roll(-1, 1)
    gradients = torch.linalg.cross((across / area[:, None])[:, None].expand_as(opposite), opposite)
    bend = (n * gradients).sum((1, 2)) / area / 2
    share = torch.zeros(len(vertices), dtype=torch.float64)
    share = share.index_add(0, faces.reshape(-1), area.repeat_interleave(3)).clamp_min(1e-20)
    for _ in range(1 + rounds):
        whole = (area * bend).repeat_interleave(3)
        found = torch.zeros_like(share).index_add(0, faces.reshape(-1), whole) / share
        bend = found[faces].mean(1)
    return found.float()


def sample_grid(
    density: Callable[[Tensor], Tensor],
    radius: float,
    resolution: int,
    *,
    chunk: int = 1 << 18,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Densities (R, R, R), axes x y z, at R equal steps over [-radius, radius].

    Raises ValueError for a wrong shape, EmptyGeometryError for values that are not finite.
    """
    if resolution < 2 or radius <= 0 or chunk < 1:
        raise ValueError(f"expected resolution >= 2, radius > 0, chunk >= 1, got {resolution}, {radius}, {chunk}")
    axis = torch.linspace(-radius, radius, resolution)
    slab = max(1, chunk // resolution**2)
    values = torch.empty(resolution, resolution**2)
    with torch.no_grad():
        for rows, x in zip(values.split(slab), axis.split(slab), strict=True):
            points = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
            found = batches(density, points, chunk, device)
            if found.shape != (len(points),):
                raise ValueError(f"density of {len(points)} points must be ({len(points)},), got {tuple(found.shape)}")
            rows.copy_(found.view_as(rows))
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise EmptyGeometryError(f"the density is not finite at {broken} of {values.numel()} grid points")
    return values.reshape((resolution,) * 3)


def _oblique(grid: Tensor, step: float, largest: int = 96) -> tuple[Tensor, float]:
    """The grid resampled in a fixed orthogonal frame that no axis of the grid lies near, and its step."""
    size = min(len(grid), largest)
    angles = torch.tensor([[1.0, 2.0, 3.0], [-2.0, 1.0, 1.0], [3.0, -1.0, 2.0]])
    rotation = torch.linalg.qr(angles).Q
    theta = torch.nn.functional.pad(rotation, (0, 1))[None]
    where = torch.nn.functional.affine_grid(theta, [1, 1, size, size, size], align_corners=True)
    turned = torch.nn.functional.grid_sample(grid[None, None], where, align_corners=True)
    return turned[0, 0], step * (len(grid) - 1) / (size - 1)


def automatic_level(grid: Tensor, step: float, *, tolerance: float = 0.01) -> float:
    """The density whose surface has the outlines that the volume shows.

    Along each axis of a frame that is oblique to the grid (flat faces are mostly parallel to the grid, and a ray that
    grazes a face sums up its soft edge) the volume is seen as opacity 1 - exp(-sum density * step), which is opaque
    where it exceeds one half (where it exceeds half of the largest optical depth, if no ray is that opaque). A solid
    cut at level l is seen wherever the largest density along the ray exceeds l. The level is the l with the best
    intersection over union of the two outlines, all three axes together; of the levels within `tolerance` of the best
    it is the middle. The smallest density is taken as empty. The rule needs no scale of its own and its level lies
    between the smallest and the largest density, so every field that is not constant has a surface. Raises
    EmptyGeometryError for a constant grid.
    """
    low, high = float(grid.min()), float(grid.max())
    if not low < high:
        raise EmptyGeometryError(f"the density is {low:g} everywhere, it has no surface")
    turned, step = _oblique(grid - low, step)
    depth = torch.stack([turned.sum(dim=axis).flatten() * step for axis in range(3)]).flatten().double()
    peak = torch.stack([turned.amax(dim=axis).flatten() for axis in range(3)]).flatten().double()
    opaque = depth > min(math.log(2), 0.5 * float(depth.amax()))
    peak, order = peak.sort(descending=True)
    hits = opaque[order].cumsum(0).double()
    seen = torch.arange(1, len(peak) + 1)
    below = torch.nn.functional.pad(peak[1:], (0, 1))
    iou = torch.where(peak > below, hits / (opaque.sum() + seen - hits), 0.0)
    good = torch.nonzero((iou > 0) & (iou >= iou.amax() - tolerance))
    return low + float((peak[good[0]] + below[good[-1]]) / 2) if len(good) else (low + high) / 2


def _clean(volume: np.ndarray, level: float, keep: float) -> None:
    """In place: drop parts below `keep` of the largest part's volume, then fill what no view can see."""
    from scipy import ndimage

    empty, full = volume.min(), volume.max()
    labels, count = ndimage.label(volume > level, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    volume[(sizes < keep * sizes.max())[labels] & (labels > 0)] = empty
    volume[hidden(volume > level)] = full


def extract(
    density: Callable[[Tensor], Tensor],
    rgb: Callable[[Tensor], Tensor],
    *,
    radius: float,
    resolution: int = 128,
    threshold: float | Literal["auto"] = "auto",
    smooth: float = 0.0,
    faces: int = 0,
    keep: float = 0.01,
    chunk: int = 1 << 18,
    device: torch.device | str = "cpu",
) -> Mesh:
    """The surface of a density field in [-radius, radius]^3, closed and oriented outwards.

    `density` maps points (N, 3) on `device` to (N,), `rgb` to (N, 3). `threshold` is a density, or "auto" for
    `automatic_level`. Parts smaller than `keep` of the largest are dropped (0 keeps all); what is `hidden`
    inside is filled. `smooth` is the width in cells of `smoothed`, `faces` the most triangles that are left (0: all).
    The colours are those that rays through the surface composite (`shell_colours`). Raises EmptyGeometryError unless
    min < level < max.
    """
    from skimage.measure import marching_cubes

    grid = sample_grid(density, radius, resolution, chunk=chunk, device=device)
    low, mean, high = float(grid.min()), float(grid.mean()), float(grid.max())
    step = 2 * radius / (resolution - 1)
    level = automatic_level(grid, step) if threshold == "auto" else float(threshold)
    if not low < level < high:
        raise EmptyGeometryError(
            f"no surface at density {level:g}: the field has min {low:g}, mean {mean:g}, max {high:g}; "
            f"set export.threshold between min and max, or to auto"
        )
    margin = 1 + math.ceil(4 * smooth)
    volume = np.pad(grid.numpy(), margin, constant_values=low)
    del grid
    _clean(volume, level, keep)
    volume, cut = smoothed(volume, level, smooth)
    corners, triangles, _, _ = marching_cubes(volume, cut, spacing=(step,) * 3, gradient_direction="ascent")
    points = torch.from_numpy(corners.astype(np.float32)) - (radius + margin * step)
    points, triangles = without_specks(points, torch.from_numpy(triangles.astype(np.int64)), keep)
    points, triangles = decimated(points, triangles, faces)
    mesh = Mesh(points, triangles, torch.zeros_like(points), level)
    depth, shape = shell_depth(level, radius), (points, mesh.normals, mesh.curvature)
    return replace(mesh, colours=shell_colours(density, rgb, *shape, depth=depth, chunk=chunk, device=device))
