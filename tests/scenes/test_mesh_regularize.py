"""Regularisers of meshes: closed forms, loops over their definition, invariance to scale.

Seen to fail: neighbours not counted; the sum in place of the mean; the sign of the sine; the length of normals kept.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.surface.edges import edges_of
from threestudio_rf.scenes.surface.regularize import convex, laplacian, normal_consistency, vertex_normals
from threestudio_rf.scenes.surface.tetra import Triangles, grid_points, march_tetrahedra

TERMS = (laplacian, normal_consistency, convex)


def cube() -> Triangles:
    import trimesh

    made = trimesh.creation.box()
    return Triangles(torch.tensor(made.vertices), torch.tensor(made.faces).long())


def blob(resolution: int = 12, wave: float = 0.1) -> Triangles:
    points = grid_points(resolution, 1.0).double()
    distance = points.norm(dim=-1) - 0.6 + wave * torch.sin(7 * points).sum(-1)
    return march_tetrahedra(points, distance, resolution)


def test_the_laplacian_is_the_loop_over_its_definition() -> None:
    mesh = blob()
    edges = edges_of(mesh.faces)
    near: list[list[int]] = [[] for _ in mesh.vertices]
    for a, b in edges.ends.t().tolist():
        near[a].append(b)
        near[b].append(a)
    away = [v - mesh.vertices[around].mean(0) for v, around in zip(mesh.vertices, near, strict=True)]
    unit = (mesh.vertices[edges.ends[0]] - mesh.vertices[edges.ends[1]]).square().sum(-1).mean()
    assert torch.allclose(laplacian(mesh, edges), torch.stack(away).square().sum(-1).mean() / unit)


def test_a_cube_has_right_angles_at_its_edges_and_none_at_its_diagonals() -> None:
    mesh = cube()
    assert abs(normal_consistency(mesh, edges_of(mesh.faces)).item() - 12 / 18) < 1e-12
    assert convex(mesh, edges_of(mesh.faces)).item() == 0
    turned = Triangles(mesh.vertices, mesh.faces.flip(1))
    # the third corner of a face of the inverted cube rises by the sine between edge and diagonal of its middle
    rise = sum(math.sin(math.atan2(float(height), float(width))) for height, width in _rises(turned))
    assert abs(convex(turned, edges_of(turned.faces)).item() - rise / 36) < 1e-9 and rise > 10


def _rises(mesh: Triangles) -> list[tuple[Tensor, Tensor]]:
    """How high above each neighbour's plane a face's third corner lies, and how far along it, by a loop."""
    edges, found = edges_of(mesh.faces), []
    for end, other, face in zip(edges.ends.t(), edges.others.t(), edges.faces.t(), strict=True):
        middle = mesh.vertices[end].mean(0)
        for mine, its in ((0, 1), (1, 0)):
            a, b, c = mesh.vertices[mesh.faces[face[mine]]]
            normal = torch.linalg.cross(b - a, c - a)
            normal = normal / normal.norm()
            there = mesh.vertices[other[its]] - middle
            height = there @ normal
            found.append((height.clamp(min=0), (there - height * normal).norm()))
    return found


@pytest.mark.parametrize("term", TERMS)
def test_the_size_of_a_mesh_does_not_change_a_term(term) -> None:  # type: ignore[no-untyped-def]
    mesh = blob()
    edges = edges_of(mesh.faces)
    assert term(mesh, edges) > 1e-4
    larger = Triangles(3.7 * mesh.vertices + 1, mesh.faces)
    assert torch.allclose(term(mesh, edges), term(larger, edges))


@pytest.mark.parametrize("term", TERMS)
def test_a_small_step_down_its_gradient_lowers_a_term(term) -> None:  # type: ignore[no-untyped-def]
    mesh = blob(wave=0.05)
    edges = edges_of(mesh.faces)
    place = mesh.vertices.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(Triangles(place, mesh.faces), edges), place)
    assert bool(torch.isfinite(slope).all())
    moved = Triangles(mesh.vertices - 1e-7 * slope / slope.abs().max(), mesh.faces)
    assert term(moved, edges) < term(mesh, edges)


@pytest.mark.parametrize("term", TERMS)
def test_no_faces_and_faces_without_area_have_finite_gradients(term) -> None:  # type: ignore[no-untyped-def]
    place = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    for faces in (torch.zeros(0, 3).long(), torch.tensor([[0, 1, 2], [2, 1, 3]])):
        value = term(Triangles(place, faces), edges_of(faces))
        (slope,) = torch.autograd.grad(value, place)
        assert value.item() >= 0 and bool(torch.isfinite(slope).all())


def test_the_normals_of_a_ball_point_away_from_its_middle() -> None:
    points = grid_points(16, 1.0).double()
    mesh = march_tetrahedra(points, points.norm(dim=-1) - 0.7, 16)
    normals = vertex_normals(mesh)
    assert torch.allclose(normals.norm(dim=-1), torch.ones(len(normals), dtype=torch.float64))
    straight = (normals * mesh.vertices / mesh.vertices.norm(dim=-1, keepdim=True)).sum(-1)
    assert float(straight.min()) > 0.97
