"""Meshes from densities: marching cubes with an automatic level, closed, oriented outwards, with vertex colours.

Marching cubes: Lorensen and Cline 1987, in the topologically consistent form of Lewiner et al. 2003 (scikit-image).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.core.files import write_files

FORMATS = ("glb", "obj", "ply")


class EmptyGeometryError(ValueError):
    """The density has no surface at the level, or a mesh has no faces."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with colours: vertices (V, 3) in the scene's coordinates (z up, front +x), faces (F, 3) counter
    clockwise from outside, colours (V, 3) in [0, 1]; all on the CPU."""

    vertices: Tensor
    faces: Tensor
    colours: Tensor

    @property
    def volume(self) -> float:
        """Enclosed volume by the divergence theorem, positive when the faces look outwards."""
        a, b, c = self.vertices.double()[self.faces].unbind(dim=1)
        return float((a * torch.linalg.cross(b, c)).sum() / 6)

    def normalised(self) -> Mesh:
        """Centred on the middle of its bounding box, the longest side of which becomes 1."""
        low, high = self.vertices.amin(dim=0), self.vertices.amax(dim=0)
        return replace(self, vertices=(self.vertices - (low + high) / 2) / (high - low).amax())


def _batches(query: Callable[[Tensor], Tensor], points: Tensor, chunk: int, device: torch.device | str) -> Tensor:
    return torch.cat([query(part.to(device)).detach().float().cpu() for part in points.split(chunk)])


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
    parts = []
    with torch.no_grad():
        for x in axis.split(slab):
            points = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
            parts.append(_batches(density, points, chunk, device))
    values = torch.cat(parts)
    if values.shape != (resolution**3,):
        raise ValueError(f"density of {resolution**3} points must be ({resolution**3},), got {tuple(values.shape)}")
    broken = int((~torch.isfinite(values)).sum())
    if broken:
        raise EmptyGeometryError(f"the density is not finite at {broken} of {len(values)} grid points")
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
    solid = volume > level
    volume[ndimage.binary_fill_holes(solid) & ~solid] = full


def extract(
    density: Callable[[Tensor], Tensor],
    rgb: Callable[[Tensor], Tensor],
    *,
    radius: float,
    resolution: int = 128,
    threshold: float | Literal["auto"] = "auto",
    chunk: int = 1 << 18,
    keep: float = 0.01,
    device: torch.device | str = "cpu",
) -> Mesh:
    """The surface of a density field in [-radius, radius]^3, closed and oriented outwards.

    `density` maps points (N, 3) on `device` to (N,), `rgb` to (N, 3), which is asked at the vertices and clamped to
    [0, 1]. `threshold` is a density, or "auto" for `automatic_level`. Parts smaller than `keep` of the largest are
    dropped (0 keeps all); enclosed hollows are filled. Raises EmptyGeometryError unless min < level < max.
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
    volume = np.pad(grid.numpy(), 1, constant_values=low)
    _clean(volume, level, keep)
    vertices, faces, _, _ = marching_cubes(volume, level, spacing=(step,) * 3, gradient_direction="ascent")
    points = torch.from_numpy(vertices.astype(np.float32)) - (radius + step)
    with torch.no_grad():
        colours = _batches(rgb, points, chunk, device)
    if colours.shape != points.shape or not torch.isfinite(colours).all():
        raise ValueError(f"rgb of {len(points)} points must be finite ({len(points)}, 3), got {tuple(colours.shape)}")
    return Mesh(points, torch.from_numpy(faces.astype(np.int64)), colours.clamp(0, 1))


def to_linear(srgb: Tensor) -> Tensor:
    """Linear light in [0, 1] of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def _trimesh(mesh: Mesh, *, gltf: bool) -> Any:
    import trimesh

    vertices = mesh.vertices[:, [1, 2, 0]] if gltf else mesh.vertices
    colours = to_linear(mesh.colours) if gltf else mesh.colours
    colours = torch.nn.functional.pad((colours * 255).round(), (0, 1), value=255).to(torch.uint8)
    return trimesh.Trimesh(vertices.numpy(), mesh.faces.numpy(), vertex_colors=colours.numpy(), process=False)


def write(mesh: Mesh, folder: Path | str, *, formats: Sequence[str] = FORMATS, name: str = "model") -> list[Path]:
    """Write `folder/name.<format>` for each format, all or none, and return the paths.

    Size: the longest side of the bounding box is 1, its middle is the origin. Axes: GLB is +Y up and looks along +Z,
    as its standard says, so (x, y, z) becomes (y, z, x); OBJ and PLY stay in the scene's frame, z up and front +x,
    as threestudio writes them and T3Bench's renderer reads them. Vertex colours are the 8-bit values that a render
    shows; in GLB they are linear light, as its standard asks (stored as sRGB, viewers would show them pale).

    Raises EmptyGeometryError for a mesh without faces or with NaN, ValueError for an unknown format, OSError when the
    disk is full; then no file is left behind and old ones are kept.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ValueError(f"mesh formats must be among {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
    if not len(mesh.faces) or not torch.isfinite(mesh.vertices).all():
        raise EmptyGeometryError(f"a mesh of {len(mesh.vertices)} vertices and {len(mesh.faces)} faces is not written")
    unit = mesh.normalised()
    files = {}
    for kind in formats:
        normals = {"vertex_normal" if kind == "ply" else "include_normals": True}
        data = _trimesh(unit, gltf=kind == "glb").export(file_type=kind, **normals)
        files[Path(folder) / f"{name}.{kind}"] = data.encode() if isinstance(data, str) else data
    write_files(files)
    return list(files)
