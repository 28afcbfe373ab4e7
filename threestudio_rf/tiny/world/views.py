"""The tiny world: procedural shapes in ten colours, seen by the cameras of the 3D task, with captions.

An image is colour * shading * mask + background * (1 - mask), where colour is that of the part of the shape that a
pixel shows. Shading is view-dependent and colourless: ambient 0.40, sky 0.25 (1 + n_z) / 2 and a headlight
0.35 max(0, n . to_camera), so it lies in (0, 1]. Only shading, mask and part are stored; colour and background are
applied when a batch is drawn.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.priors.views import OCTANT_WORDS, octant_index
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.tiny.world.shapes import SHAPES, Distance, Shape, palettes

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
WORDINGS = (*VIEW_WORDS, *OCTANT_WORDS)
"""Every name of a view: the four words of Stable Diffusion's users, then octant and height."""
EXTRA_WORDS = ("a", "an", "the", "photo", "of", "object", "view", ",")
VOCABULARY = tuple(dict.fromkeys((*EXTRA_WORDS, *COLOURS, *SHAPES, *" ".join(WORDINGS).split())))
IMAGE_SIZE = 64
BOUND = 0.62


def palette() -> Tensor:
    """The ten named colours (10, 3)."""
    return torch.tensor(list(COLOURS.values()))


class View(NamedTuple):
    """True views of a shape by B cameras, each (B, 1, H, W): coverage in [0, 1], shading, distance along the ray, and
    the index of the part that is seen (None: there is one part only)."""

    mask: Tensor
    shading: Tensor
    depth: Tensor
    part: Tensor | None = None


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


def render(shape: Shape, camera: Camera, *, scale: float = 1.0, shift: float = 0.0, turn: float = 0.0) -> View:
    """The true views of `shape`, turned about z by degrees, scaled about the origin and then shifted along z, by sphere
    tracing.

    Coverage is antialiased: half a pixel inside the outline counts as full, half a pixel outside as none.
    """
    batch, height, width = len(camera), camera.height, camera.width
    camera = replace(camera, azimuth=camera.azimuth - turn)
    origins, directions = camera.rays()
    pixel = 2 * torch.tan(torch.deg2rad(camera.fovy) / 2) / height
    origins = (origins - origins.new_tensor((0.0, 0.0, shift))) / scale
    origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
    mask, travel = _trace(shape.sdf, origins, directions, pixel.repeat_interleave(height * width))
    hit = torch.nonzero(mask > 0).squeeze(-1)
    points = origins[hit] + travel[hit, None] * directions[hit]
    normals = _normals(shape.sdf, points)
    facing = -(normals * directions[hit]).sum(-1)
    shading = torch.zeros_like(mask)
    shading[hit] = 0.40 + 0.125 * (1 + normals[:, 2]) + 0.35 * facing.clamp_min(0)
    part = torch.zeros_like(mask, dtype=torch.long)
    part[hit] = shape.part_at(points)
    maps = (x.reshape(batch, 1, height, width) for x in (mask, shading, travel * scale, part))
    return View(*maps)


def paint(view: View, colour: Tensor) -> Tensor:
    """The colour of every pixel (B, 3, H or 1, W or 1) for colours (B, 3) of all parts, or (B, K, 3) by part."""
    if colour.ndim == 2:
        return colour[:, :, None, None]
    if view.part is None:
        return colour[:, 0, :, None, None]
    index = view.part.flatten(1)[:, :, None].expand(-1, -1, 3)
    chosen = colour.expand(len(index), -1, -1).gather(1, index).transpose(1, 2)
    painted: Tensor = chosen.unflatten(2, view.mask.shape[-2:])
    return painted


def compose(view: View, colour: Tensor, background: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] from backgrounds (B, 3) and colours, (B, 3) for all parts or (B, K, 3) by part."""
    return paint(view, colour) * view.shading * view.mask + background[:, :, None, None] * (1 - view.mask)


def random_backgrounds(colour: Tensor, draw: Generator, *, contrast: float = 0.3) -> Tensor:
    """Flat backgrounds (B, 3), uniform in the unit cube but at least `contrast` away from the object's colour."""
    background = torch.rand(colour.shape, generator=draw)
    for _ in range(16):
        close = (background - colour).norm(dim=-1) < contrast
        background = torch.where(close[:, None], torch.rand(colour.shape, generator=draw), background)
    return background


class Views(NamedTuple):
    """Stored views of the world: mask, shading and part as bytes (N, 1, H, W); shape index, view word and index into
    OCTANT_WORDS (N,)."""

    mask: Tensor
    shading: Tensor
    part: Tensor
    shape: Tensor
    view: Tensor
    octant: Tensor

    def select(self, index: Tensor) -> Views:
        """The views of `index`."""
        return Views(*(x[index] for x in self))

    def to(self, device: torch.device | str) -> Views:
        """The same on another device."""
        return Views(*(x.to(device) for x in self))

    def images(self, colour: Tensor, background: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [0, 1] in named colours (N, 3) before backgrounds (N, 3)."""
        mask, shading = self.mask.float() / 255, self.shading.float() / 255
        return compose(View(mask, shading, mask, self.part.long()), PALETTES(self.shape, colour), background)


PALETTES = palettes()


def _byte(share: Tensor) -> Tensor:
    return (share * 255).round().byte()


def random_world(
    per_shape: int, seed: int, *, size: int = IMAGE_SIZE, chunk: int = 64, device: torch.device | str = "cpu"
) -> Views:
    """`per_shape` random views of every shape, from the cameras of the 3D task; other seeds share no view. They are
    rendered on `device`, `chunk` at a time on a CPU, and lie on the CPU."""
    parts: list[Views] = []
    chunk = chunk if torch.device(device).type == "cpu" else 8 * chunk
    for number, shape in enumerate(SHAPES.values()):
        camera = random_views(per_shape, generator(seed, number, "world"), height=size, width=size)
        for start in range(0, per_shape, chunk):
            some = camera.select(slice(start, start + chunk))
            view = render(shape, some.to(device))
            assert view.part is not None
            where = some.azimuth, some.elevation
            label = torch.full((len(some),), number)
            mask, shading, part = (x.cpu() for x in (_byte(view.mask), _byte(view.shading), view.part.byte()))
            parts.append(Views(mask, shading, part, label, view_of(*where), octant_index(*where)))
    return Views(*(torch.cat(column) for column in zip(*parts, strict=True)))
