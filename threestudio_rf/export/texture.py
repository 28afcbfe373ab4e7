"""A texture for a mesh: its surface cut and laid flat by xatlas, the colours of a field baked into a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.export.mesh import Mesh
from threestudio_rf.export.shell import batches, shell_colours, shell_depth
from threestudio_rf.export.unwrap import unwrapped
from threestudio_rf.scenes.base import Meshed, Surface
from threestudio_rf.scenes.surface.raster import Screen, barycentric, interpolate, rasterize

SMALLEST, LARGEST = 16, 4096
GUTTER = 4
"""Texels between two pieces of the surface, filled with the colours of the nearer one."""
CHUNK = 1 << 18
Colours = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Atlas:
    """A texture and how it lies on a mesh. Along cuts a vertex of the mesh has several places in the picture: `origin`
    (W,) names the vertex of the mesh behind each of the W corners, `faces` (F, 3) are in corners and in the order of
    the mesh's faces, `uv` (W, 2) in [0, 1] from the picture's lower left, `picture` (N, N, 3) sRGB bytes."""

    origin: Tensor
    faces: Tensor
    uv: Tensor
    picture: np.ndarray


def texture_size(mesh: Mesh, cell: float, *, per_cell: float = 3.0) -> int:
    """The power of two from 64 to 2048 that gives a cell of the density's grid `per_cell` texels a side, when three
    quarters of the picture are used."""
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(dim=1)
    area = float(torch.linalg.cross(b - a, c - a).norm(dim=-1).sum() / 2)
    wanted = math.sqrt(area / 0.75) / cell * per_cell
    return 1 << min(11, max(6, round(math.log2(max(wanted, 1)))))


def textured(mesh: Mesh, colours: Colours, size: int) -> Atlas:
    """The atlas of a mesh with a picture of `size` texels a side.

    `colours` maps points (N, 3), outward normals (N, 3) and mean curvatures (N,) of the surface to sRGB (N, 3) in
    [0, 1]. Raises ValueError for a size outside of 16 to 4096, UnwrapError where xatlas is missing or gives no atlas.
    """
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"a texture has {SMALLEST} to {LARGEST} texels a side, got {size}")
    origin, faces, uv = _unwrapped(mesh, size)
    flat = Screen(size * uv[None, :, 0], size * (1 - uv[None, :, 1]), torch.ones(1, len(uv)), size, size)
    texels = rasterize(flat, faces)
    places = torch.cat((mesh.vertices, mesh.normals, mesh.curvature[:, None]), dim=1)[origin].t()
    shape = interpolate(places, faces, texels, barycentric(flat, faces, texels)).t()
    points, normals, curvature = shape.split((3, 3, 1), dim=1)
    picture, filled = torch.zeros(size * size, 3), torch.zeros(size * size, dtype=torch.bool)
    picture[texels.cell] = colours(points, torch.nn.functional.normalize(normals, dim=-1), curvature[:, 0])
    filled[texels.cell] = True
    shown = (picture * 255).round().byte().view(size, size, 3).numpy()
    return Atlas(origin, faces, uv, _spread(shown, filled.view(size, size).numpy()))


def colours_of(surface: Surface, mesh: Mesh, *, device: torch.device | str = "cpu") -> Colours:
    """What `textured` asks for the colours of the surface that `mesh` was extracted from: those of its shell, or those
    that a scene with a mesh of its own has on it."""
    if isinstance(surface, Meshed):
        own: Surface = surface
        return lambda points, normals, curvature: batches(own.colour, points, CHUNK, device)
    depth = shell_depth(mesh.level or 0.0, surface.radius)

    def colours(points: Tensor, normals: Tensor, curvature: Tensor) -> Tensor:
        return shell_colours(surface.density, surface.colour, points, normals, curvature, depth=depth, device=device)

    return colours


def _unwrapped(mesh: Mesh, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Origin, faces and uv of an `Atlas`."""
    arrays = (array.contiguous().numpy() for array in (mesh.vertices, mesh.faces, mesh.normals))
    found = unwrapped(*arrays, size=size, padding=GUTTER)
    origin, faces, uv = (torch.from_numpy(array.astype(_wide(array))) for array in found)
    return origin, faces, uv


def _wide(array: np.ndarray) -> type:
    return np.float32 if array.dtype.kind == "f" else np.int64


def _spread(picture: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The picture with every texel within the gutter of a filled one in its colour, and the mean colour elsewhere."""
    from scipy.ndimage import distance_transform_edt

    distance, nearest = distance_transform_edt(~filled, return_indices=True)
    near = picture[nearest[0], nearest[1]]
    mean = picture[filled].mean(axis=0).round().astype(np.uint8)
    spread: np.ndarray = np.where((distance <= GUTTER + 1)[..., None], near, mean)
    return spread
