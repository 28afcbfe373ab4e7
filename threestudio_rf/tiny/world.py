"""The tiny world: procedural shapes in ten colours, seen by the cameras of the 3D task, with captions.

An image is colour * shading * mask + background * (1 - mask). Shading is view-dependent and colourless: ambient 0.40,
sky 0.25 (1 + n_z) / 2 and a headlight 0.35 max(0, n . to_camera), so it lies in (0, 1]. Only shading and mask are
stored; colour and background are applied when a batch is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.tiny.shapes import SHAPES, Distance, Shape

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.97, 0.88, 0.15),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.15, 0.78, 0.82),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.16, 0.68),
    "pink": (1.00, 0.55, 0.74),
    "brown": (0.38, 0.21, 0.10),
    "white": (0.96, 0.96, 0.96),
}
VIEW_WORDS = ("side", "front", "back", "overhead")
EXTRA_WORDS = ("a", "an", "the", "photo", "of", "object", "view", ",")
VOCABULARY = (*EXTRA_WORDS, *COLOURS, *SHAPES, *VIEW_WORDS)
IMAGE_SIZE = 64
BOUND = 0.62


class View(NamedTuple):
    """What a shape shows to B cameras, each (B, 1, H, W): coverage in [0, 1], shading, distance along the ray."""

    mask: Tensor
    shading: Tensor
    depth: Tensor


def article(word: str) -> str:
    """The indefinite article of a word."""
    return "an" if word[0] in "aeiou" else "a"


def prompt_of(shape: str, colour: str) -> str:
    """The canonical prompt, "a red mushroom"."""
    return f"{article(colour)} {colour} {shape}"


def view_of(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Index into VIEW_WORDS (B,): overhead above 60 degrees, front within 45 degrees of +x, back, else side."""
    turn = torch.remainder(azimuth + 180, 360) - 180
    view = torch.zeros_like(turn, dtype=torch.long)
    view[turn.abs() < 45] = 1
    view[turn.abs() > 135] = 2
    view[elevation > 60] = 3
    return view


def _normals(sdf: Distance, points: Tensor, step: float = 2e-3) -> Tensor:
    """Unit gradients (N, 3) by central differences on a tetrahedron."""
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    total = torch.zeros_like(points)
    for corner in corners:
        total += corner * sdf(points + step * corner)[:, None]
    return torch.nn.functional.normalize(total, dim=-1)


def _trace(sdf: Distance, origins: Tensor, directions: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and distance (N,) per ray. The distance is eroded by half a pixel, so a ray that misses the eroded
    shape by m pixels at its nearest approach is covered by 1 - m."""
    middle = -(origins * directions).sum(-1)
    miss = (origins + middle[:, None] * directions).norm(dim=-1)
    far = middle + BOUND
    depth = (middle - BOUND).clamp_min(0.05)
    nearest, at = torch.full_like(depth, torch.inf), depth.clone()
    active = torch.nonzero(miss < BOUND).squeeze(-1)
    travel = depth[active]
    for _ in range(64):
        if not len(active):
            break
        size = pixel[active] * travel
        gap = sdf(origins[active] + travel[:, None] * directions[active]) + 0.5 * size
        pixels = gap / size
        closer = pixels < nearest[active]
        nearest[active[closer]], at[active[closer]] = pixels[closer], travel[closer]
        travel = travel + gap.clamp_min(1e-3)
        keep = (pixels > 2e-2) & (travel < far[active])
        active, travel = active[keep], travel[keep]
    return torch.where(nearest < 2e-2, torch.ones_like(nearest), 1 - nearest.clamp(0, 1)), at


def render(shape: Shape, camera: Camera, *, scale: float = 1.0, shift: float = 0.0) -> View:
    """The true views of `shape`, scaled about the origin and then shifted along z, by sphere tracing.

    Coverage is antialiased: half a pixel inside the outline counts as full, half a pixel outside as none.
    """
    batch, height, width = len(camera), camera.height, camera.width
    origins, directions = camera.rays()
    pixel = 2 * torch.tan(torch.deg2rad(camera.fovy) / 2) / height
    origins = (origins - origins.new_tensor((0.0, 0.0, shift))) / scale
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    mask, travel = _trace(shape.sdf, origins, directions, pixel.repeat_interleave(height * width))
    hit = torch.nonzero(mask > 0).squeeze(-1)
    normals = _normals(shape.sdf, origins[hit] + travel[hit, None] * directions[hit])
    facing = -(normals * directions[hit]).sum(-1)
    shading = torch.zeros_like(mask)
    shading[hit] = 0.40 + 0.125 * (1 + normals[:, 2]) + 0.35 * facing.clamp_min(0)
    maps = (x.reshape(batch, 1, height, width) for x in (mask, shading, travel * scale))
    return View(*maps)


def compose(view: View, colour: Tensor, background: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from colours and backgrounds (B, 3)."""
    figure = colour[:, :, None, None] * view.shading
    return figure * view.mask + background[:, :, None, None] * (1 - view.mask)


def random_backgrounds(colour: Tensor, draw: Generator, *, contrast: float = 0.3) -> Tensor:
    """Flat backgrounds (B, 3), uniform in the unit cube but at least `contrast` away from the object's colour."""
    background = torch.rand(colour.shape, generator=draw)
    for _ in range(16):
        close = (background - colour).norm(dim=-1) < contrast
        background = torch.where(close[:, None], torch.rand(colour.shape, generator=draw), background)
    return background


class Views(NamedTuple):
    """Stored views of the world: mask and shading as bytes (N, 1, H, W), shape index and view word (N,)."""

    mask: Tensor
    shading: Tensor
    shape: Tensor
    view: Tensor

    def select(self, index: Tensor) -> Views:
        """The views of `index`."""
        return Views(*(x[index] for x in self))

    def images(self, colour: Tensor, background: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1]."""
        mask, shading = self.mask.float() / 255, self.shading.float() / 255
        return compose(View(mask, shading, mask), colour, background)


def random_world(per_shape: int, seed: int, *, size: int = IMAGE_SIZE, chunk: int = 64) -> Views:
    """`per_shape` random views of every shape, from the cameras of the 3D task; other seeds share no view."""
    parts: list[Views] = []
    for number, shape in enumerate(SHAPES.values()):
        camera = random_views(per_shape, generator(seed, number, "world"), height=size, width=size)
        for start in range(0, per_shape, chunk):
            some = camera.select(slice(start, start + chunk))
            view = render(shape, some)
            label = torch.full((len(some),), number)
            parts.append(
                Views(
                    (view.mask * 255).round().byte(),
                    (view.shading * 255).round().byte(),
                    label,
                    view_of(some.azimuth, some.elevation),
                )
            )
    return Views(*(torch.cat(column) for column in zip(*parts, strict=True)))
