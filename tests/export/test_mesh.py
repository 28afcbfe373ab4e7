"""Laws and oracles of mesh export; the oracles are trimesh (volume, watertightness, files) and volume rendering.

Mutations seen to fail: gradient_direction "descent" (volume), edge padding (touching the box), vertices off by the
padding (where it is), `opaque` at a depth of 0.07 and of 5 (outlines), the smallest density not taken as empty
(between), `keep` ignored (small parts), hollows left (hollows).
"""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch import Tensor

from threestudio_rf.export.mesh import EmptyGeometryError, Mesh, automatic_level, extract, sample_grid
from threestudio_rf.scenes.camera import sphere_views
from threestudio_rf.tiny.world.shapes import SHAPES


def ball(centre: tuple[float, float, float], radius: float, height: float = 50.0):
    return lambda p: height * torch.sigmoid((radius - (p - torch.tensor(centre)).norm(dim=-1)) / 0.01)


def grey(points: Tensor) -> Tensor:
    return torch.full_like(points, 0.5)


def position_colour(points: Tensor) -> Tensor:
    return (points + 1) / 2


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)


def test_a_ball_has_its_volume_and_lies_where_it_is():
    mesh = extract(ball((0.3, -0.2, 0.1), 0.4), grey, radius=1.0, resolution=72, threshold=25.0)
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.01)
    middle = (mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2
    assert torch.allclose(middle, torch.tensor([0.3, -0.2, 0.1]), atol=0.01)


@pytest.mark.parametrize("name", ["donut", "chair"])
def test_meshes_are_closed_and_look_outwards(name: str):
    sdf = SHAPES[name].sdf
    mesh = extract(lambda p: 100 * torch.sigmoid(-sdf(p) / 0.02), grey, radius=0.8, resolution=48)
    solid = as_trimesh(mesh)
    assert solid.is_watertight and solid.is_winding_consistent and solid.volume > 0
    assert mesh.volume == pytest.approx(solid.volume, rel=1e-5)
    assert solid.euler_number == (0 if name == "donut" else 2)


def test_an_object_that_touches_the_box_is_closed_too():
    mesh = extract(lambda p: 10.0 * (p[:, 0] > 0.1), grey, radius=0.5, resolution=20, threshold=5.0)
    assert as_trimesh(mesh).is_watertight and mesh.volume > 0.3


def test_the_chunk_changes_nothing():
    whole = extract(ball((0, 0, 0), 0.5), position_colour, radius=0.7, resolution=21)
    parts = extract(ball((0, 0, 0), 0.5), position_colour, radius=0.7, resolution=21, chunk=100)
    assert torch.equal(whole.vertices, parts.vertices)
    assert torch.allclose(whole.colours, parts.colours, atol=1e-6)


@pytest.mark.parametrize("height, width", [(100, 0.01), (20, 0.03), (300, 0.03)])
@pytest.mark.parametrize("name", ["cube", "star"])
def test_the_automatic_level_has_the_outlines_of_the_rendered_volume(name: str, height: float, width: float):
    def density(points: Tensor) -> Tensor:
        return height * torch.sigmoid(-SHAPES[name].sdf(points) / width)

    level = automatic_level(sample_grid(density, 1.0, 64), 2 / 63)
    origins, directions = (x.reshape(-1, 1, 3) for x in sphere_views(6, height=24, width=24).rays())
    points = origins + torch.linspace(0.8, 2.8, 160)[:, None] * directions
    along = density(points.reshape(-1, 3)).reshape(-1, 160)
    opaque = 1 - torch.exp(-along.sum(1) * 2 / 159) > 0.5

    def iou(level: float) -> float:
        solid = along.amax(1) > level
        return float((solid & opaque).sum() / (solid | opaque).sum())

    best = max(iou(float(level)) for level in torch.logspace(-1, 2, 40))
    assert iou(level) > best - 0.03
    assert iou(level) > iou(0.3 * level) and iou(level) > iou(3 * level) - 0.01


def test_the_automatic_level_is_always_between_smallest_and_largest():
    draw = torch.Generator().manual_seed(0)
    corner = torch.zeros(9, 9, 9)
    corner[0, 0, 0] = 1.0
    fields = [torch.rand(9, 9, 9, generator=draw) * 10.0**k + 3 for k in range(-4, 5)] + [corner, 1e-6 * corner]
    for grid in fields:
        assert float(grid.min()) < automatic_level(grid, 0.1) < float(grid.max())


def test_small_parts_go_and_hollows_are_filled():
    def two(points: Tensor) -> Tensor:
        return ball((-0.2, 0, 0), 0.45)(points) + ball((0.6, 0, 0), 0.09)(points)

    def shell(points: Tensor) -> Tensor:
        return ball((0, 0, 0), 0.5)(points) - ball((0, 0, 0), 0.3)(points) + ball((0, 0, 0), 0.1)(points)

    kept = extract(two, grey, radius=0.8, resolution=40, threshold=25.0, keep=0.0)
    one = extract(two, grey, radius=0.8, resolution=40, threshold=25.0)
    filled = extract(shell, grey, radius=0.8, resolution=40, threshold=25.0)
    assert (as_trimesh(kept).body_count, as_trimesh(one).body_count, as_trimesh(filled).body_count) == (2, 1, 1)
    assert filled.volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.02)


def test_a_field_without_a_surface_says_what_it_holds():
    with pytest.raises(EmptyGeometryError, match=r"density 80.*min .*mean .*max 50.*export\.threshold"):
        extract(ball((0, 0, 0), 0.5), grey, radius=0.8, resolution=17, threshold=80.0)
    with pytest.raises(EmptyGeometryError, match="everywhere"):
        extract(lambda p: torch.zeros(len(p)), grey, radius=0.8, resolution=8)
    with pytest.raises(EmptyGeometryError, match="not finite at 3 of 512"):
        extract(lambda p: torch.where(torch.arange(len(p)) < 3, torch.nan, 1.0), grey, radius=0.8, resolution=8)
    with pytest.raises(ValueError, match=r"must be \(512,\)"):
        extract(lambda p: p, grey, radius=0.8, resolution=8)
