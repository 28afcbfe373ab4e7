"""The strict figures of pictures: how well the outline of a sample is that of a true view of its shape, and from where
that view is seen.

The judge forgives what is nearly right; these do not: a chair with melted legs has no true view near it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.tiny.world.bank import BankCameras, load_bank
from threestudio_rf.tiny.world.shapes import SHAPES, Shape
from threestudio_rf.tiny.world.views import View, compose

SIZE = 64
CONTRAST = 0.25
GREY = 0.5
WORLD = BankCameras()
"""1,500 views by the cameras of the whole world."""


def border(images: Tensor) -> Tensor:
    """The outermost pixels (N, 3, P)."""
    return torch.cat([images[:, :, [0, -1]].flatten(2), images[..., [0, -1]].flatten(2)], dim=2)


def own_mask(images: Tensor) -> Tensor:
    """Where pictures (N, 3, H, W) in [0, 1] are further (Euclidean, rgb) than 0.25 from the median of their border;
    bool (N, H, W)."""
    background = border(images).median(dim=2).values[..., None, None]
    distance: Tensor = (images - background).norm(dim=1)
    return distance > CONTRAST


def nearest_iou(seen: Tensor, true: Tensor) -> Tensor:
    """The best intersection over union (N,) of masks (N, H, W) with any of the masks (V, H, W); 0 for an empty one."""
    a, b = seen.flatten(1).float(), true.flatten(1).float()
    both = a @ b.T
    either = a.sum(1, keepdim=True) + b.sum(1) - both
    return (both / either.clamp_min(1)).amax(dim=1)


@lru_cache(maxsize=2 * len(SHAPES))
def true_masks(shape: Shape, cameras: BankCameras = WORLD, cache: Path | None = None) -> Tensor:
    """The masks (V, 64, 64) of the true views of a solid, bool."""
    return load_bank(shape, size=SIZE, cameras=cameras, cache=cache).mask > 127


def nearest_view_iou(
    images: Tensor, shape: Shape, *, cameras: BankCameras = WORLD, cache: Path | None = None
) -> Tensor:
    """For pictures (N, 3, H, W) in [0, 1] the best IoU (N,) of their own mask with a true view of `shape`, in [0, 1].

    Pictures of another size than 64 are brought to it by area. The bound is not 1: a true picture lies between the
    views, and a part whose colour is near the background's is missing from its own mask.
    """
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="area")
    return nearest_iou(own_mask(images), true_masks(shape, cameras, cache))


def seen_from(
    images: Tensor, shape: Shape, colours: Tensor, *, cameras: BankCameras = WORLD, cache: Path | None = None
) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation (N,) in degrees of the true view whose pixels are nearest to each picture (N, 3, H, W) with
    its background made grey; colours (K, 3) are those of the shape's parts. A shape looks the same from several sides
    where it has a symmetry, so this tells something of shapes with a front."""
    if images.shape[-2:] != (SIZE, SIZE):
        images = F.interpolate(images, (SIZE, SIZE), mode="area")
    seen = torch.where(own_mask(images)[:, None], images, GREY).flatten(1)
    bank = load_bank(shape, size=SIZE, cameras=cameras, cache=cache)
    mask, shading, part = (x[:, None] for x in bank[:3])
    view = View(mask.float() / 255, shading.float() / 255, mask, part.long())
    true = compose(view, colours.expand(len(mask), -1, -1), torch.full((len(mask), 3), GREY)).flatten(1)
    nearest = (true.square().sum(1) - 2 * seen @ true.T).argmin(1)
    return bank.azimuth[nearest], bank.elevation[nearest]
