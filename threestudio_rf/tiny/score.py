"""How right a 3D result is: the figures of the tiny world, where the true shape and colour are known.

Every figure is a pure function; `score_scene` gathers them. A result is read against its bound, which is what the
same figures give for `TrueScene` and the true mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.tiny.shapes import SHAPES, Shape
from threestudio_rf.tiny.world import COLOURS, IMAGE_SIZE, VIEW_WORDS, View, compose, render, view_of

MaskOf = Callable[[float, float], Tensor]
Classify = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
VIEWS = 24
POINTS = 20_000


class Triangles(Protocol):
    """Anything with vertices (V, 3) and faces (F, 3)."""

    @property
    def vertices(self) -> Tensor: ...

    @property
    def faces(self) -> Tensor: ...


class Fit(NamedTuple):
    """The best silhouette overlap and the scale and shift of the truth that reach it."""

    iou: float
    scale: float
    shift: float


def held_out(size: int = IMAGE_SIZE) -> Camera:
    """The 24 views of every figure: a fixed spiral on the sphere, elevation -10 to 60 degrees, azimuth all round."""
    return sphere_views(VIEWS, height=size, width=size)


def masks_of(shape: Shape, camera: Camera) -> MaskOf:
    """The true masks (B, 1, H, W) as a function of the scale about the origin and a shift along z applied after it."""
    return lambda scale, shift: render(shape, camera, scale=scale, shift=shift).mask > 0.5


def mean_iou(seen: Tensor, mask: Tensor) -> float:
    """Mean over views of intersection over union of two boolean masks (B, 1, H, W); 1 where both are empty."""
    both, either = (x.flatten(1).sum(1) for x in (seen & mask, seen | mask))
    return float(torch.where(either > 0, both / either.clamp_min(1), 1.0).mean())


def fit_silhouette(
    opacity: Tensor,
    mask_of: MaskOf,
    *,
    scales: tuple[float, float] = (0.5, 2.0),
    shifts: tuple[float, float] = (-0.4, 0.4),
    finest: float = 0.01,
) -> Fit:
    """Maximise the mean IoU of opacity (B, 1, H, W) > 0.5 with the true mask over scale and shift along z.

    A grid of shifts at the scale that matches the total area, and the untouched truth, give the start; from there the
    best neighbour on a grid of relative step 0.08 is taken until none is better, then the step is halved, down to
    `finest`. Azimuth is not searched. An empty opacity scores 0.
    """
    seen = opacity > 0.5
    if not seen.any():
        return Fit(0.0, 1.0, 0.0)

    @cache
    def at(scale: float, shift: float) -> Fit:
        inside = scales[0] <= scale <= scales[1] and shifts[0] <= shift <= shifts[1]
        return Fit(mean_iou(seen, mask_of(scale, shift) > 0.5) if inside else -1.0, scale, shift)

    ratio = float(seen.sum() / (mask_of(1.0, 0.0) > 0.5).sum().clamp_min(1)) ** 0.5
    same_area = round(min(max(ratio, scales[0]), scales[1]), 2)
    best = max(at(1.0, 0.0), *(at(same_area, shift) for shift in (-0.2, -0.1, 0.0, 0.1, 0.2)))
    step = 0.08
    while step >= finest:
        scale, shift = best.scale, best.shift
        around = [at(scale * (1 + step), shift), at(scale / (1 + step), shift)]
        around += [at(scale, shift + 0.5 * step), at(scale, shift - 0.5 * step)]
        if max(around).iou > best.iou:
            best = max(around)
        else:
            step /= 2
    return best


def silhouette_iou(opacity: Tensor, mask_of: MaskOf) -> float:
    """Mean over views of the IoU of opacity > 0.5 with the true mask after the best scale and shift along z."""
    return fit_silhouette(opacity, mask_of).iou


def surface_points(mesh: Triangles, n: int, generator: Generator) -> Tensor:
    """`n` points (n, 3) drawn uniformly by area, after the mesh's bounding box is centred and its longest side is 1.

    Raises ValueError for a mesh without area.
    """
    vertices = mesh.vertices.double()
    corners = vertices[mesh.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1).cumsum(0)
    if not len(area) or not area[-1] > 0:
        raise ValueError(f"a mesh with area is needed, got {len(mesh.vertices)} vertices and {len(mesh.faces)} faces")
    u, r, s = torch.rand(3, n, generator=generator, dtype=torch.float64)
    chosen = corners[torch.searchsorted(area, u * area[-1]).clamp_max(len(area) - 1)]
    r = r.sqrt()[:, None]
    weights = torch.cat((1 - r, r * (1 - s[:, None]), r * s[:, None]), dim=1)
    used = corners.reshape(-1, 3)
    low, high = used.amin(dim=0), used.amax(dim=0)
    return ((weights[:, :, None] * chosen).sum(dim=1) - (low + high) / 2) / (high - low).amax()


def chamfer(mesh_a: Triangles, mesh_b: Triangles, n: int = POINTS, *, generator: Generator) -> float:
    """Symmetric mean distance between two surfaces, each scaled to the unit box.

    (mean_a min_b |a - b| + mean_b min_a |b - a|) / 2 over `n` points of each, Euclidean, not squared, in units of the
    longest side. Two samples of one surface of area A are about 0.5 sqrt(A / n) apart, which is the floor.
    """
    from scipy.spatial import cKDTree

    a, b = (surface_points(mesh, n, generator).numpy() for mesh in (mesh_a, mesh_b))
    return float(cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2


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


def albedos(rgb: Tensor, opacity: Tensor, truth: View) -> Tensor:
    """Estimated albedo (N, 3) of the N <= B views that show something.

    The world draws colour * shading, so the albedo is the mean rgb (B, 3, H, W) over the pixels of opacity > 0.5,
    divided by the mean true shading over the pixels of true mask > 0.5 of the same view; one row of pixels along the
    outline is left out of both means.
    """
    seen, real = _inside(opacity > 0.5), _inside(truth.mask > 0.5)
    shading = (truth.shading * real).sum((1, 2, 3)) / real.sum((1, 2, 3)).clamp_min(1)
    count = seen.sum((1, 2, 3))
    mean = (rgb * seen).sum((2, 3)) / count.clamp_min(1)[:, None]
    return (mean / shading.clamp_min(1e-6)[:, None])[(count > 0) & (shading > 0)]


def colour_error(rgb: Tensor, opacity: Tensor, truth: View, colour: Sequence[float]) -> float | None:
    """Mean over views of the CIE76 distance |Lab(albedo) - Lab(colour)|; None when no view shows anything."""
    return colour_distance(albedos(rgb, opacity, truth), colour)


def colour_distance(albedo: Tensor, colour: Sequence[float]) -> float | None:
    """Mean CIE76 distance of albedos (N, 3) to a colour; None for none."""
    return float((lab(albedo) - lab(torch.tensor(colour))).norm(dim=-1).mean()) if len(albedo) else None


def oversaturation(albedo: Tensor, colour: Sequence[float]) -> float | None:
    """Mean chroma (a*^2 + b*^2)^1/2 of albedos (N, 3) less that of a colour: above 0 too strong; None for none."""
    found, named = (lab(x)[..., 1:].norm(dim=-1) for x in (albedo, torch.tensor(colour)))
    return float((found - named).mean()) if len(albedo) else None


def judged_accuracy(shape_logits: Tensor, colour_logits: Tensor, shape: int, colour: int) -> float:
    """Share of views (B, classes) whose judged shape and judged colour are both the given ones."""
    return float(((shape_logits.argmax(-1) == shape) & (colour_logits.argmax(-1) == colour)).float().mean())


def janus(view_logits: Tensor, azimuth: Tensor, elevation: Tensor, *, front: bool) -> float | None:
    """Share of the views below 60 degrees whose judged word among side, front and back is not the azimuth's.

    `view_logits` (B, 4) in the order of VIEW_WORDS, angles (B,) in degrees. None for a shape whose front cannot be
    told from its back, or without such a view.
    """
    true = view_of(azimuth, elevation)
    low = true != VIEW_WORDS.index("overhead")
    if not front or not low.any():
        return None
    words = [VIEW_WORDS.index(word) for word in ("side", "front", "back")]
    judged = torch.tensor(words)[view_logits[:, words].argmax(-1).cpu()]
    return float((judged != true.cpu())[low.cpu()].float().mean())


class TrueScene(Scene):
    """A shape in one colour before a flat background: the scene that every figure calls perfect."""

    def __init__(self, shape: Shape, colour: Sequence[float], background: Sequence[float] = (0.5, 0.5, 0.5)) -> None:
        super().__init__()
        self.shape = shape
        self.colour = torch.tensor([tuple(colour)])
        self.background = torch.tensor([tuple(background)])

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The true views; nothing is random, and there are no normals."""
        view = render(self.shape, camera)
        return Rendering(compose(view, self.colour, self.background), view.mask, view.depth)


def score_scene(
    scene: Scene,
    mesh: Triangles | None,
    *,
    shape: str,
    colour: str,
    truth: Triangles,
    judge: Classify,
    generator: Generator,
    camera: Camera | None = None,
    device: torch.device | str = "cpu",
    batch: int = 4,
) -> dict[str, float | None]:
    """The figures judged_accuracy, silhouette_iou, chamfer, colour_error, saturation and janus of a scene and its mesh.

    `truth` is the true mesh, `mesh` the exported one (None: chamfer is None). The scene is rendered `batch` views at
    a time on `device`, by default from `held_out()`. Raises ValueError for a shape or colour the world does not have.
    """
    if shape not in SHAPES or colour not in COLOURS:
        raise ValueError(f"the world has {', '.join(SHAPES)} in {', '.join(COLOURS)}, got a {colour} {shape}")
    camera = held_out() if camera is None else camera
    with torch.no_grad():
        parts = [scene.render(camera.select(slice(i, i + batch)).to(device)) for i in range(0, len(camera), batch)]
        rgb = torch.cat([part.rgb.float().cpu() for part in parts])
        opacity = torch.cat([part.opacity.float().cpu() for part in parts])
        shape_logits, colour_logits, view_logits = judge(rgb)
    solid = SHAPES[shape]
    found = albedos(rgb, opacity, render(solid, camera))
    return {
        "judged_accuracy": judged_accuracy(
            shape_logits, colour_logits, list(SHAPES).index(shape), list(COLOURS).index(colour)
        ),
        "silhouette_iou": silhouette_iou(opacity, masks_of(solid, camera)),
        "chamfer": None if mesh is None else chamfer(mesh, truth, generator=generator),
        "colour_error": colour_distance(found, COLOURS[colour]),
        "saturation": oversaturation(found, COLOURS[colour]),
        "janus": janus(view_logits, camera.azimuth, camera.elevation, front=solid.front),
    }
