"""A picture as a scene: what is optimised is the picture itself, or its latent, at its true size."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, nn

from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera

Picture = Literal["pixels", "latent"]


class ImageScene(Scene):
    """`shape` (B, C, H, W): B independent pictures, the same to every camera.

    kind    what `values` are, and what `Rendering.rgb` holds
    pixels  C = 3; rgb = sigmoid(values): always a picture in [0, 1], and no clamp that cuts the gradient off
    latent  a prior's latents, rgb = values unbounded: whoever distils them leaves the encoder out

    Values start from N(0, std^2). The reference of RFDS optimises latents eight times too large, U(-1, 1), and shrinks
    them bilinearly, so that a latent is the mean of four values: std 12^-1/2 = 0.289 at the true size.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], kind: Picture, *, generator: Generator, std: float = 12**-0.5
    ) -> None:
        super().__init__()
        if kind not in ("pixels", "latent") or (kind == "pixels" and shape[1] != 3) or min(shape) < 1 or std < 0:
            raise ValueError(
                f"got shape {shape}, kind {kind!r}, std {std}, expected (B, C, H, W) with C = 3 for pixels, "
                "kind pixels or latent, std of at least 0"
            )
        self.kind: Picture = kind
        self.values = nn.Parameter(std * torch.randn(shape, generator=generator))

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """All B pictures, fully opaque, whatever the camera; nothing is random, and there are no normals."""
        rgb = self.values.sigmoid() if self.kind == "pixels" else self.values
        return Rendering(rgb, torch.ones_like(rgb[:, :1]))
