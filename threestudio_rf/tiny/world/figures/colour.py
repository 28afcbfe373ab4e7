"""Colour as a figure: the albedo of an object whose true shading is known, against that of the world."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.tiny.world.views import View, paint


def lab(rgb: Tensor) -> Tensor:
    """CIE L*a*b* (..., 3) of sRGB values (..., 3), D65, two-degree observer (IEC 61966-2-1, CIE 15)."""
    rgb = rgb.double()
    linear = torch.where(rgb > 0.04045, ((rgb.clamp_min(0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    xyz = linear @ linear.new_tensor(matrix).T / linear.new_tensor((0.95047, 1.0, 1.08883))
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(dim=-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def _inside(mask: Tensor) -> Tensor:
    """The mask (B, 1, H, W) without its outermost pixels, which show the background too; whole where none remain."""
    outside = torch.nn.functional.pad((~mask).double(), (1, 1, 1, 1), value=1.0)
    core = torch.nn.functional.max_pool2d(outside, 3, stride=1) < 0.5
    return torch.where(core.flatten(1).any(dim=1)[:, None, None, None], core, mask)


class Albedos(NamedTuple):
    """Of N views that show something, the albedo that is seen and the true one, both (N, 3)."""

    found: Tensor
    true: Tensor

    @property
    def error(self) -> float | None:
        """Mean over views of the CIE76 distance |Lab(found) - Lab(true)|; None for no view."""
        return float((lab(self.found) - lab(self.true)).norm(dim=-1).mean()) if len(self.found) else None

    @property
    def saturation(self) -> float | None:
        """Mean chroma (a*^2 + b*^2)^1/2 found less the true one: above 0 is too strong; None for no view."""
        found, true = (lab(x)[..., 1:].norm(dim=-1) for x in (self.found, self.true))
        return float((found - true).mean()) if len(self.found) else None


def albedos(rgb: Tensor, opacity: Tensor, truth: View, palette: Tensor) -> Albedos:
    """Albedos of the views that show something, for colours (3,) or (K, 3) of the parts.

    The world draws colour * shading, so the albedo is the mean rgb (B, 3, H, W) over the pixels of opacity > 0.5,
    divided by the mean true shading over the pixels of true mask > 0.5 of the same view; one row of pixels along the
    outline is left out of both means. The true one is the mean of colour * shading there, divided likewise: where there
    is one colour, that colour. A `truth` of one view is that of all pictures.
    """
    seen, real = _inside(opacity > 0.5), _inside(truth.mask > 0.5)
    true = paint(truth, palette[None]) * truth.shading * real
    lit, wanted = (truth.shading * real).sum((1, 2, 3)), true.sum((2, 3))
    count = seen.sum((1, 2, 3))
    mean = (rgb * seen).sum((2, 3)) / count.clamp_min(1)[:, None]
    shading = lit / real.sum((1, 2, 3)).clamp_min(1)
    known = (count > 0) & (lit > 0)
    albedo = (wanted / lit.clamp_min(1e-6)[:, None]).expand(len(known), 3)
    return Albedos((mean / shading.clamp_min(1e-6)[:, None])[known], albedo[known])
