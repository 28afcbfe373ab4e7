"""Signed distances against closed forms.

Seen to fail: the sign of one axis turned; one vote enough; rays through the vertices themselves; the sample's distance
in place of the face's.
"""

from __future__ import annotations

import pytest
import torch
import trimesh
from torch import Tensor

from threestudio_rf.export.distance import FAR, inside, signed_distance, winding
from threestudio_rf.scenes.surface.tetra import grid_points, march_tetrahedra

R, RADIUS = 20, 0.6


def parts(mesh: trimesh.Trimesh) -> tuple[Tensor, Tensor]:
    return torch.tensor(mesh.vertices), torch.tensor(mesh.faces).long()


def box_distance(p: Tensor, half: Tensor) -> Tensor:
    q = p.abs() - half
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


@pytest.mark.parametrize("half", [(0.21, 0.33, 0.4), (0.3, 0.3, 0.3)])  # the second on the grid's own vertices
def test_the_distance_of_a_box_is_the_closed_form(half: tuple[float, ...]) -> None:
    vertices, faces = parts(trimesh.creation.box([2 * x for x in half]))
    found = signed_distance(vertices, faces, R, RADIUS)
    far = FAR * 2 * RADIUS / R
    exact = box_distance(grid_points(R, RADIUS), torch.tensor(half)).clamp(-far, far)
    assert float((found.abs() - exact.abs()).abs().max()) < 0.004
    clear = exact.abs() > 1e-5
    assert torch.equal(found[clear] < 0, exact[clear] < 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rays_along_every_axis_count_once_inside_and_twice_where_two_bodies_overlap(axis: int) -> None:
    balls = [trimesh.creation.icosphere(subdivisions=3, radius=0.3) for _ in range(2)]
    balls[0].apply_translation([0.15, 0.05, 0.0])
    balls[1].apply_translation([-0.15, 0.05, 0.1])
    found = winding(*parts(trimesh.util.concatenate(balls)), R, RADIUS, axis).reshape(-1)
    points = grid_points(R, RADIUS)
    away = [(points - torch.tensor(middle)).norm(dim=-1) for middle in ([0.15, 0.05, 0.0], [-0.15, 0.05, 0.1])]
    expected = sum((x < 0.3).long() for x in away)
    clear = torch.stack([(x - 0.3).abs() > 0.01 for x in away]).all(0)
    assert torch.equal(found[clear], expected[clear]) and int(expected.max()) == 2  # type: ignore[union-attr]


def test_a_hole_in_one_side_misleads_no_vertex() -> None:
    vertices, faces = parts(trimesh.creation.icosphere(subdivisions=3, radius=0.4))
    top = vertices[faces].mean(1)[:, 2] > 0.37
    assert int(top.sum()) > 20
    found = inside(vertices, faces[~top], R, RADIUS).reshape(-1)
    points = grid_points(R, RADIUS)
    clear = (points.norm(dim=-1) - 0.4).abs() > 0.01
    under = clear & ((points[:, 2] < 0.3) | (points[:, :2].norm(dim=-1) > 0.2))
    assert torch.equal(found[under], points.norm(dim=-1)[under] < 0.4)


def test_tetrahedra_give_a_mesh_back() -> None:
    body = trimesh.creation.icosphere(subdivisions=3, radius=0.45)
    body.apply_scale([1.0, 0.7, 0.5])
    distance = signed_distance(*parts(body), 40, RADIUS)
    again = march_tetrahedra(grid_points(40, RADIUS), distance, 40)
    made = trimesh.Trimesh(again.vertices.numpy(), again.faces.numpy(), process=False)
    assert made.is_watertight and abs(made.volume / body.volume - 1) < 0.01


def test_a_mesh_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="without area"):
        signed_distance(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), R, RADIUS)
