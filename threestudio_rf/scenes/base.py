"""The contract of everything that can be rendered: a scene knows cameras and pictures, never a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor, nn

from threestudio_rf.scenes.camera import Camera


class Rendering(NamedTuple):
    """What a scene shows to B cameras, every map (B, C, H, W); a map that was not computed is None.

    `rgb` in [0, 1] over the background, `opacity` in [0, 1], `depth` the expected distance along the ray, `normal`
    unit vectors in world coordinates weighted by opacity, `orientation` the penalty of normals that face away,
    `z_variance` the variance of the distance along the ray, `border` the opacity of what is near the border of the
    scene.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor | None = None
    normal: Tensor | None = None
    orientation: Tensor | None = None
    z_variance: Tensor | None = None
    border: Tensor | None = None


class Scene(nn.Module, ABC):
    """Parameters that can be looked at."""

    @abstractmethod
    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The views of `camera`; `generator` None means deterministic (no jitter, the scene's own background).
        `normals` asks for the maps `normal` and `orientation`, which cost further evaluations."""

    def update(self, step: int, generator: Generator) -> None:
        """Called once before each step; for state that is refreshed rather than learned."""
