"""Pictures as callers in Python get them: a tensor that can also be PIL pictures, and that a notebook shows."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 16
"""The most pictures that a notebook shows of one tensor."""


class Pictures(Tensor):
    """A tensor (N, 3, H, W) in [0, 1]; what is computed from it is one too.

    >>> pictures(torch.zeros(2, 3, 8, 8)).pil()[0].size
    (8, 8)
    """

    def pil(self) -> list[Image]:
        """One RGB picture of 8 bits per channel for each. ValueError unless the shape is (N, 3, H, W) or (3, H, W)."""
        from PIL import Image

        plain = self.as_subclass(Tensor).detach().cpu()
        plain = plain[None] if plain.ndim == 3 else plain
        if plain.ndim != 4 or plain.shape[1] != 3:
            raise ValueError(f"got {tuple(self.shape)}, expected pictures (N, 3, H, W)")
        rows = (plain.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        return [Image.fromarray(row.numpy()) for row in rows]

    def _repr_html_(self) -> str:
        """The pictures side by side; the text of the tensor where its shape is another."""
        if self.ndim not in (3, 4) or self.shape[-3] != 3:
            return f"<pre>{self.as_subclass(Tensor)!r}</pre>"
        return "".join(tag(picture) for picture in self.pil()[:SHOWN])


def pictures(images: Tensor) -> Pictures:
    """The same values with `pil` and a look of their own in notebooks."""
    made = images.as_subclass(Pictures)
    assert isinstance(made, Pictures)
    return made


def tag(picture: Image) -> str:
    """A PIL picture as an <img> that needs no file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{text}" width="{picture.width}" height="{picture.height}">'
