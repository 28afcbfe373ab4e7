"""The judge: a small classifier of shape, colour and view word, trained on views that no prior ever saw.

A NeRF render is softer than a picture of the world, so it is trained with blur, noise and thin objects too.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS

NONE = "none of these"
"""The judge's last class of shapes: something that is no shape of the world, a melted one for example."""


class Verdict(NamedTuple):
    """Logits (B, shapes and maybe NONE), (B, colours) and (B, view words)."""

    shape: Tensor
    colour: Tensor
    view: Tensor


class Judge(nn.Module):
    """Five strided convolutions with group norm, then one linear map to all three answers; input (B, 3, 64, 64)."""

    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), *, shapes: int = len(SHAPES) + 1) -> None:
        """`shapes`: how many of SHAPES, and NONE behind all of them, it tells apart."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 5, stride=2, padding=2), nn.SiLU()]
        for wide, wider in pairwise(channels):
            layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.sizes = [shapes, len(COLOURS), len(VIEW_WORDS)]
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels[-1] * 16, 128), nn.SiLU(), nn.Linear(128, sum(self.sizes))
        )

    def forward(self, images: Tensor) -> Verdict:
        """Judge images (B, 3, H, W) in [0, 1]; other sizes are resized to 64 by area."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="area")
        return Verdict(*self.head(self.body(2 * images - 1)).split(self.sizes, dim=-1))


def load_judge(folder: Path) -> Judge:
    """The judge of `<folder>/judge.safetensors`, in float32 and eval mode; its weights say how many shapes it knows."""
    from safetensors.torch import load_file

    state: dict[str, Any] = {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
    answers = len(state["head.3.bias"])
    judge = Judge(shapes=answers - len(COLOURS) - len(VIEW_WORDS))
    judge.load_state_dict(state)
    return judge.eval().requires_grad_(False)
