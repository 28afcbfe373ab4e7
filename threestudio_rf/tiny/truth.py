"""The true geometry of the tiny world: a mesh of every shape, from the same signed distance that draws its pictures."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.tiny.shapes import SHAPES, Shape
from threestudio_rf.tiny.world import BOUND, COLOURS


class TrueMesh(NamedTuple):
    """Vertices (V, 3) in the scene's coordinates and faces (F, 3), normals outward."""

    vertices: Tensor
    faces: Tensor


def true_mesh(shape: Shape, *, resolution: int = 128) -> TrueMesh:
    """Marching cubes of the signed distance on `resolution`^3 points of [-0.62, 0.62]^3; closed, in scene units."""
    from skimage.measure import marching_cubes

    if resolution < 8:
        raise ValueError(f"a true mesh needs a resolution of at least 8, got {resolution}")
    axis = torch.linspace(-BOUND, BOUND, resolution)
    grid = torch.cartesian_prod(axis, axis, axis)
    distance = torch.cat([shape.sdf(part) for part in grid.split(262_144)]).reshape(resolution, resolution, resolution)
    step = 2 * BOUND / (resolution - 1)
    vertices, faces, _, _ = marching_cubes(distance.numpy(), 0.0, spacing=(step,) * 3, gradient_direction="descent")
    return TrueMesh(torch.from_numpy(vertices.copy()) - BOUND, torch.from_numpy(faces.astype("int64")))


def subject(prompt: str) -> tuple[str, str] | None:
    """(shape, colour) of a prompt that names exactly one of each, else None: only then is there a truth."""
    words = [word.strip(".,;:!?'\"").lower() for word in prompt.split()]
    shapes = [word for word in words if word in SHAPES]
    colours = [word for word in words if word in COLOURS]
    return (shapes[0], colours[0]) if len(shapes) == 1 and len(colours) == 1 else None
