"""Stored true views of one solid: rendered once, kept in a cache folder, used by the exact prior and the strict figure.

What a bank holds depends on the solid, the cameras, the number of views and the size of the pictures only; its file is
named by a digest of all of them, so that a shape that changes gets a new bank.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.files import write_files
from threestudio_rf.core.random import generator
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.tiny.world.shapes import Shape
from threestudio_rf.tiny.world.views import render

SEED = 7
CHUNK = 64
LOW, HIGH = -10.0, 70.0
"""Elevations of every bank, those of the world's cameras."""


@dataclass(frozen=True)
class BankCameras:
    """`views` cameras all round the solid; ranges of distance and vertical field of view as in `random_views`."""

    views: int = 1500
    distance: tuple[float, float] = (1.6, 2.0)
    fovy: tuple[float, float] = (40.0, 52.0)

    def cameras(self, size: int) -> Camera:
        """The cameras, the same at every call, with pictures of `size` pixels."""
        return random_views(
            self.views,
            generator(SEED, 0, "bank"),
            elevation=(LOW, HIGH),
            distance=self.distance,
            fovy=self.fovy,
            height=size,
            width=size,
        )


NARROW = BankCameras(distance=(1.8, 1.8), fovy=(46.0, 46.0))
"""One distance and field of view: every view of the bank differs from its neighbours by its angles only."""


class Bank(NamedTuple):
    """V true views as bytes, mask, shading and part (V, H, W), and their azimuth and elevation (V,) in degrees."""

    mask: Tensor
    shading: Tensor
    part: Tensor
    azimuth: Tensor
    elevation: Tensor


class Products(NamedTuple):
    """A bank ready for products: paint (K, V, P), clear (V, P) = w, their sums and products (K, V) or (V,), and for
    every name of a view whether it holds, (1 + WORDINGS, V), the last row for no name."""

    paint: Tensor
    clear: Tensor
    paint2: Tensor
    paint_clear: Tensor
    paint_sum: Tensor
    clear2: Tensor
    clear_sum: Tensor
    holds: Tensor

    def of(self, views: slice | Tensor) -> Products:
        """Those views only, a slice or a mask (V,)."""
        of_views = ("clear", "clear2", "clear_sum")
        return Products(**{k: x[views] if k in of_views else x[:, views] for k, x in self._asdict().items()})


def _fingerprint(shape: Shape) -> str:
    """Digest of the solid's distances and parts at fixed points, of its name, and of the shading it gets."""
    points = 0.7 * (2 * torch.rand(512, 3, generator=generator(SEED, 1, "bank")) - 1)
    values = torch.stack([part.sdf(points) for part in shape.parts])
    rounded = (values * 1e4).round().to(torch.int32).numpy().tobytes()
    return hashlib.sha256(shape.name.encode() + rounded).hexdigest()


def rendered(shape: Shape, camera: Camera) -> Bank:
    """The true views of cameras, not kept anywhere."""
    rows = []
    for start in range(0, len(camera), CHUNK):
        view = render(shape, camera.select(slice(start, start + CHUNK)))
        assert view.part is not None
        rows.append([(255 * view.mask).round().byte(), (255 * view.shading).round().byte(), view.part.byte()])
    mask, shading, part = (torch.cat(column)[:, 0] for column in zip(*rows, strict=True))
    return Bank(mask, shading, part, camera.azimuth, camera.elevation)


def load_bank(shape: Shape, *, size: int, cameras: BankCameras = NARROW, cache: Path | None = None) -> Bank:
    """The bank of a solid at `size` pixels, from `cache` where it lies there, else rendered and put there.

    A cache that cannot be written or read costs the time of rendering only.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save

    key = hashlib.sha256(f"{_fingerprint(shape)} {cameras} {size}".encode()).hexdigest()[:16]
    file = None if cache is None else cache / f"{shape.name.replace(' ', '_')}-{size}-{key}.safetensors"
    if file is not None and file.is_file():
        try:
            return Bank(**load_file(file))
        except (SafetensorError, OSError, TypeError):
            file.unlink(missing_ok=True)
    bank = rendered(shape, cameras.cameras(size))
    if file is not None:
        with suppress(OSError):
            write_files({file: save({name: value.contiguous() for name, value in bank._asdict().items()})})
    return bank
