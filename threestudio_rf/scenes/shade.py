"""Diffuse shading by a point light, drawn anew for every view (DreamFusion, Poole et al. 2023; threestudio's numbers).

A view without light shows the albedo, which is what the scene stores and what is exported; a lit one shows shape by its
shadows, and a textureless one nothing else, so that form cannot be painted on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from threestudio_rf.scenes.camera import Camera, sent

Law = Literal["normal", "cone"]
LAWS: tuple[Law, ...] = get_args(Law)


class Light(NamedTuple):
    """Per view: where the light stands (B, 3), the share of light from all sides (B,), 1 shows the albedo, and whether
    the albedo is left out for white (B,), 0 or 1."""

    position: Tensor
    ambient: Tensor
    white: Tensor

    def at(self, view: Tensor) -> Light:
        """Of the views (N,) of samples."""
        return Light(*(value.index_select(0, view) for value in self))


@dataclass(frozen=True)
class Shading:
    """From step `start` on a view is lit with probability `diffuse`, a lit one textureless with `textureless`.

    The light stands at a distance of the range, by the law "normal" in the direction of the camera's position plus
    N(0, spread^2), by "cone" at an angle of up to 60 degrees from it, both angles uniform (Magic3D). With `soft` each
    view draws its ambient share from U(0, 1). ValueError for shares outside of [0, 1], an empty range, another law.
    """

    start: int
    diffuse: float = 0.75
    textureless: float = 0.5
    ambient: float = 0.1
    spread: float = 1.0
    distance: tuple[float, float] = (0.8, 1.5)
    law: Law = "normal"
    soft: bool = False

    def __post_init__(self) -> None:
        shares = (self.diffuse, self.textureless, self.ambient)
        if not all(0 <= share <= 1 for share in shares) or not 0 < self.distance[0] <= self.distance[1]:
            raise ValueError(
                f"shading: got {shares} and {self.distance}, expected shares in [0, 1] and 0 < low <= high"
            )
        if self.law not in LAWS:
            raise ValueError(f"shading: got the law {self.law!r}, expected {' or '.join(LAWS)}")

    def draw(self, camera: Camera, step: int, generator: Generator | None) -> Light | None:
        """The lights of B views; None where all show their albedo: before `start`, and without a generator. Always the
        same number of draws from `start` on, a part of a batch those of the whole."""
        if generator is None or step < self.start:
            return None
        index, parts = camera.part
        views, count = slice(index * len(camera), (index + 1) * len(camera)), len(camera) * parts
        place, (low, high) = camera.position, self.distance
        toward = sent(torch.randn(count, 3, generator=generator)[views], place.device)
        chances = torch.rand(3, count, generator=generator)[:, views]
        if self.soft or self.law == "cone":
            chances = torch.cat([chances, torch.rand(3, count, generator=generator)[:, views]])
        if not bool((chances[0] < self.diffuse).any()):
            return None
        chances = sent(chances, place.device)
        chance, own = chances[:3], chances[-3:]
        lit = chance[0] < self.diffuse
        way = _tilted(place, own[0], own[1]) if self.law == "cone" else place + self.spread * toward
        position = functional.normalize(way, dim=-1) * (low + (high - low) * chance[1])[:, None]
        white = (lit & (chance[2] < self.textureless)).float()
        ambient = torch.where(lit, own[2] if self.soft else self.ambient, 1.0)
        return Light(position, ambient, white)


def _tilted(axis: Tensor, angle: Tensor, around: Tensor) -> Tensor:
    """Unit vectors (B, 3) at `angle` (B,) times 60 degrees from `axis` (B, 3), turned by `around` (B,) of a circle."""
    axis = functional.normalize(axis, dim=-1)
    other = functional.one_hot(axis.abs().argmin(-1), 3).to(axis)
    x = functional.normalize(torch.linalg.cross(axis, other), dim=-1)
    y = torch.linalg.cross(axis, x)
    away, turn = angle * math.pi / 3, around * 2 * math.pi
    side = turn.cos()[:, None] * x + turn.sin()[:, None] * y
    tilted: Tensor = away.cos()[:, None] * axis + away.sin()[:, None] * side
    return tilted


def shade(albedo: Tensor, points: Tensor, normals: Tensor, light: Light) -> Tensor:
    """Colours (N, 3): albedo (ambient + (1 - ambient) max(0, n . l)), l from the point to the light; with `white` the
    albedo is 1. `light` holds N rows."""
    toward = functional.normalize(light.position - points, dim=-1)
    cosine = (normals * toward).sum(dim=-1).clamp(min=0)
    share = light.ambient + (1 - light.ambient) * cosine
    return torch.lerp(albedo, torch.ones_like(albedo), light.white[:, None]) * share[:, None]
