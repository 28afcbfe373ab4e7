"""Signed distances to a mesh on a grid: what marching tetrahedra begin with."""

from __future__ import annotations

import torch
from torch import Tensor

from threestudio_rf.scenes.surface.raster import boxes, covered
from threestudio_rf.scenes.surface.tetra import grid_points

SAMPLES = 200_000
"""Points on the surface among which the nearest face is looked for."""
FAR = 4.0
"""Cells beyond which a distance is only known to be large."""
AWAY = (0.3713, 0.6127)
"""Rays pass the grid's vertices at these thousandths of a cell, so that they do not run along edges and faces of models
that are built on round numbers."""


def winding(vertices: Tensor, faces: Tensor, resolution: int, radius: float, axis: int) -> Tensor:
    """How often the faces (F, 3) of `vertices` (V, 3) surround each vertex of the grid of `grid_points`, (R + 1)^3 with
    axes x y z, counted along rays parallel to an axis: 1 inside a closed, outwards oriented mesh, 0 outside."""
    size, cell = resolution + 1, 2 * radius / resolution
    place = (vertices.double() + radius) / cell
    across = [k for k in range(3) if k != axis]
    flat = torch.stack([place[:, k] + 0.5 + 1e-3 * shift for k, shift in zip(across, AWAY, strict=True)])
    corners = flat[:, faces.t().reshape(-1)].view(2, 3, -1)
    drawn, box = boxes(corners, size, size, torch.ones(len(faces), dtype=torch.bool))
    pixel, e, face = covered(corners.view(6, -1), drawn, box)
    height = (e / e.sum(0) * place[:, axis][faces[face].t()]).sum(0)
    above = height.ceil().long().clamp(0, size)  # the first vertex of the line beyond the face
    turn = e.sum(0).sign().long() * (-1 if axis == 1 else 1)
    count = torch.zeros(size * size * (size + 1), dtype=torch.int64)
    count.index_add_(0, (pixel[0] * size + pixel[1]) * (size + 1) + above, turn)
    below = count.view(size, size, size + 1).flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return below.movedim(-1, axis)


def inside(vertices: Tensor, faces: Tensor, resolution: int, radius: float) -> Tensor:
    """Which vertices of the grid (R + 1)^3 lie inside, by the vote of rays along the three axes, so that a small hole
    misleads one of them only."""
    votes = [winding(vertices, faces, resolution, radius, axis) != 0 for axis in range(3)]
    return torch.stack(votes).sum(0) >= 2


def signed_distance(vertices: Tensor, faces: Tensor, resolution: int, radius: float) -> Tensor:
    """Distances ((R + 1)^3,) of the vertices of `grid_points` from the faces (F, 3), negative inside, at most `FAR`
    cells.

    The nearest face is that of the nearest of `SAMPLES` points on the surface, and the distance to that face is exact:
    never too small, too large by a part of their spacing at most. ValueError for a mesh without area.
    """
    import numpy as np
    import trimesh
    from scipy.spatial import KDTree

    triangles = vertices.double()[faces].numpy()
    area = trimesh.triangles.area(triangles)
    if not area.sum() > 0:
        raise ValueError(f"a mesh of {len(faces)} faces without area has no distance")
    draws = np.random.default_rng(0)
    face = np.concatenate([draws.choice(len(area), SAMPLES, p=area / area.sum()), np.arange(len(area))])
    share = draws.dirichlet((1, 1, 1), len(face))
    points, most = grid_points(resolution, radius).double().numpy(), FAR * 2 * radius / resolution
    tree = KDTree((triangles[face] * share[..., None]).sum(1))
    away, nearest = tree.query(points, distance_upper_bound=most)
    near = np.flatnonzero(np.isfinite(away))
    closest = trimesh.triangles.closest_point(triangles[face[nearest[near]]], points[near])
    away = np.full(len(points), most)
    away[near] = np.linalg.norm(points[near] - closest, axis=1)
    sign = torch.where(inside(vertices, faces, resolution, radius).reshape(-1), -1.0, 1.0)
    return sign * torch.from_numpy(away).float()
