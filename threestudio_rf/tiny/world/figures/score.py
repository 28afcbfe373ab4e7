"""Figures of a 3D result in the tiny world, where the true shape and colour are known.

Every figure is a pure function; `score_scene` gathers them. A result is read against its bound, which is what the
same figures give for `TrueScene` and the true mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.tiny.world.figures.colour import albedos
from threestudio_rf.tiny.world.figures.fit import Fit, Volume, fit_volume
from threestudio_rf.tiny.world.shapes import SHAPES, Shape
from threestudio_rf.tiny.world.truth import Subject, TrueMesh, true_mesh
from threestudio_rf.tiny.world.views import COLOURS, IMAGE_SIZE, VIEW_WORDS, compose, render, view_of

Classify = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
VIEWS = 24
POINTS = 20_000
GREY = (0.5, 0.5, 0.5)
"""What figures see an object before: no colour of the world is near it."""


class Triangles(Protocol):
    """Anything with vertices (V, 3) and faces (F, 3)."""

    @property
    def vertices(self) -> Tensor:
        """Corners (V, 3)."""

    @property
    def faces(self) -> Tensor:
        """Indices (F, 3) of the corners of each triangle."""


def held_out(size: int = IMAGE_SIZE) -> Camera:
    """The 24 views of every figure: a fixed spiral on the sphere, elevation -10 to 60 degrees, azimuth all round."""
    return sphere_views(VIEWS, height=size, width=size)


def mean_iou(seen: Tensor, mask: Tensor) -> float:
    """Mean over views of intersection over union of two boolean masks (B, 1, H, W); 1 where both are empty."""
    both, either = (x.flatten(1).sum(1) for x in (seen & mask, seen | mask))
    return float(torch.where(either > 0, both / either.clamp_min(1), 1.0).mean())


def silhouette_iou(opacity: Tensor, shape: Shape, camera: Camera, fit: Fit) -> float:
    """Mean over views of the IoU of opacity (B, 1, H, W) > 0.5 with the true mask of a shape that stands as `fit`."""
    true = render(shape, camera, scale=fit.scale, shift=fit.shift, turn=fit.turn).mask
    return mean_iou(opacity > 0.5, true > 0.5)


def surface_points(mesh: Triangles, n: int, generator: Generator) -> Tensor:
    """`n` points (n, 3) drawn uniformly by area.

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
    return (weights[:, :, None] * chosen).sum(dim=1)


def chamfer(mesh_a: Triangles, mesh_b: Triangles, n: int = POINTS, *, generator: Generator) -> float:
    """Symmetric mean distance between two surfaces where they stand, in units of the longest side of `mesh_b`.

    (mean_a min_b |a - b| + mean_b min_a |b - a|) / 2 over `n` points of each, Euclidean, not squared. Two samples of
    one surface of area A (its longest side 1) are about 0.5 sqrt(A / n) apart, which is the floor.
    """
    from scipy.spatial import cKDTree

    a, b = (surface_points(mesh, n, generator).numpy() for mesh in (mesh_a, mesh_b))
    used = mesh_b.vertices[mesh_b.faces].reshape(-1, 3)
    longest = float((used.amax(dim=0) - used.amin(dim=0)).amax())
    return float(cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / (2 * longest)


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
    """A shape in its colours (3,) or (K, 3) before a flat background: the scene that every figure calls perfect."""

    def __init__(self, shape: Shape, palette: Tensor, background: Sequence[float] = GREY) -> None:
        super().__init__()
        self.shape, self.palette = shape, palette[None]
        self.background = torch.tensor([tuple(background)])

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The true views; nothing is random, and there are no normals."""
        view = render(self.shape, camera)
        rgb = compose(view, self.palette, self.background)
        backdrop = self.background[:, :, None, None].expand_as(rgb)
        return Rendering(rgb, view.mask, view.depth, backdrop=backdrop)


def standing(truth: TrueMesh, fit: Fit) -> TrueMesh:
    """The true mesh, turned, scaled and shifted as `fit` says."""
    angle = torch.deg2rad(torch.tensor(fit.turn, dtype=torch.float64))
    cos, sin, zero, one = angle.cos(), angle.sin(), angle.new_zeros(()), angle.new_ones(())
    rotation = torch.stack((cos, -sin, zero, sin, cos, zero, zero, zero, one)).reshape(3, 3)
    vertices = fit.scale * (truth.vertices.double() @ rotation.T)
    return TrueMesh(vertices + vertices.new_tensor((0.0, 0.0, fit.shift)), truth.faces)


def before_grey(part: Rendering) -> Tensor:
    """The rgb (B, 3, H, W) of a rendering as it would be before `GREY`; as it is where the scene tells no backdrop."""
    if part.backdrop is None:
        return part.rgb
    grey = part.rgb.new_tensor(GREY)[:, None, None]
    return part.rgb + (1 - part.opacity) * (grey - part.backdrop)


def recognised(subject: Subject, verdict: tuple[Tensor, Tensor, Tensor], camera: Camera) -> dict[str, float | None]:
    """Janus and the share of views whose shape and colour the judge names, None where it does not know the shape."""
    shape_logits, colour_logits, view_logits = verdict
    names = list(SHAPES)[: shape_logits.shape[1]]
    if subject.solid.name not in names:
        return {"janus": None, "recognised": None}
    indices = names.index(subject.solid.name), list(COLOURS).index(subject.colours[0])
    return {
        "janus": janus(view_logits, camera.azimuth, camera.elevation, front=subject.solid.front),
        "recognised": judged_accuracy(shape_logits, colour_logits, *indices),
    }


def score_scene(
    scene: Scene,
    volume: Volume,
    mesh: Triangles | None,
    *,
    subject: Subject,
    judge: Classify,
    generator: Generator,
    camera: Camera | None = None,
    device: torch.device | str = "cpu",
    batch: int = 4,
) -> dict[str, float | None]:
    """The figures of a scene, its volume without cavities, and its mesh, the one that counts first.

    volume_iou      overlap of the volume with the true solid after `fit_volume`
    silhouette_iou  mean overlap of the outlines with the true ones, the truth standing as it was fitted
    chamfer         of `mesh` (None: None) and the true surface, likewise
    colour_error, saturation, janus, recognised: as in `Albedos`, `janus` and `judged_accuracy`, the judge seeing the
                    object `before_grey`: before a background of its own colour it cannot tell even the truth's front

    The scene is rendered `batch` views at a time on `device`, by default from `held_out()`.
    """
    camera, solid = held_out() if camera is None else camera, subject.solid
    with torch.no_grad():
        parts = [scene.render(camera.select(slice(i, i + batch)).to(device)) for i in range(0, len(camera), batch)]
        rgb = torch.cat([part.rgb.float().cpu() for part in parts])
        opacity = torch.cat([part.opacity.float().cpu() for part in parts])
        verdict = judge(torch.cat([before_grey(part).float().cpu() for part in parts]))
    fit = fit_volume(volume, solid)
    seen = albedos(rgb, opacity, render(solid, camera), subject.palette)
    near = None if mesh is None else chamfer(mesh, standing(true_mesh(solid), fit), generator=generator)
    marks = recognised(subject, verdict, camera)
    return {
        "volume_iou": fit.iou,
        "silhouette_iou": silhouette_iou(opacity, solid, camera, fit),
        "chamfer": near,
        "colour_error": seen.error,
        "saturation": seen.saturation,
        **marks,
    }
