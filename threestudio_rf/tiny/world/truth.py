"""The true geometry of the tiny world: a mesh of every shape, from the same signed distance that draws its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.tiny.world.shapes import SHAPES, Shape
from threestudio_rf.tiny.world.stacked import stacked
from threestudio_rf.tiny.world.views import BOUND, COLOURS


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


@dataclass(frozen=True)
class Subject:
    """Subject of a prompt: a solid and the names of its colours, one per colour that the prompt has to name."""

    solid: Shape
    colours: tuple[str, ...]

    @property
    def palette(self) -> Tensor:
        """The colours of its parts (K, 3)."""
        return self.solid.palette(torch.tensor([[COLOURS[name] for name in self.colours]]))[0]


class Named(NamedTuple):
    """Words of a prompt that the world knows: a solid, and its colours in the order of the solid's, None for one left
    out."""

    solid: Shape
    colours: tuple[str | None, ...]


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, lower case, without punctuation."""
    return [word.strip(".,;:!?'\"()").lower() for word in prompt.split()]


def named(prompt: str) -> Named | None:
    """The one shape of a prompt, or the two of "a red ball on a blue cube", with the colour before each of them.

    None for no shape, for two without "on" between them, and for more colours than one per shape.
    """
    words = words_of(prompt)
    places = [i for i, word in enumerate(words) if word in SHAPES]
    colours = [i for i, word in enumerate(words) if word in COLOURS]
    if len(places) == 1 and len(colours) <= 1:
        return Named(SHAPES[words[places[0]]], (words[colours[0]] if colours else None,))
    if len(places) != 2 or "on" not in words[places[0] : places[1]]:
        return None
    first, second = (
        [i for i in colours if low <= i < place] for low, place in zip((0, places[0]), places, strict=True)
    )
    if len(first) > 1 or len(second) > 1 or len(first) + len(second) < len(colours):
        return None
    found = tuple(words[part[0]] if part else None for part in (first, second))
    return Named(stacked(words[places[0]], words[places[1]]), found)


def subject(prompt: str) -> Subject | None:
    """Subject of a prompt that names every colour, so that there is one truth; else None."""
    found = named(prompt)
    if found is None:
        return None
    colours = tuple(colour for colour in found.colours if colour is not None)
    return Subject(found.solid, colours) if len(colours) == len(found.colours) else None
