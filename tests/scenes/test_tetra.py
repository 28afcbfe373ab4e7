"""Marching tetrahedra against exact surfaces, topology and finite differences.

Seen to fail: triangles not turned outwards; corners of the second triangle of a quadrangle in another order; the share
of the wrong end; the outermost vertices taken as they are; a division by a difference that underflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.surface.tetra import Triangles, grid_points, march_tetrahedra


def ball(p: Tensor, radius: float = 0.7) -> Tensor:
    return p.norm(dim=-1) - radius


def box(p: Tensor) -> Tensor:
    q = p.abs() - p.new_tensor([0.61, 0.47, 0.33])
    return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)


def donut(p: Tensor) -> Tensor:
    return torch.hypot(p[:, :2].norm(dim=-1) - 0.55, p[:, 2]) - 0.24


def two_balls(p: Tensor) -> Tensor:
    shift = p.new_tensor([0.5, 0, 0])
    return torch.minimum(ball(p - shift, 0.35), ball(p + shift, 0.35))


def surface(shape: Callable[[Tensor], Tensor], resolution: int = 24) -> Triangles:
    points = grid_points(resolution, 1.0).double()
    return march_tetrahedra(points, shape(points), resolution)


def volume(mesh: Triangles) -> float:
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return float((a * torch.linalg.cross(b, c)).sum() / 6)


def closed(faces: Tensor) -> bool:
    """Every directed edge occurs once, and once the other way round."""
    size = int(faces.max()) + 1
    there = torch.cat([faces[:, k] * size + faces[:, (k + 1) % 3] for k in range(3)])
    back = torch.cat([faces[:, (k + 1) % 3] * size + faces[:, k] for k in range(3)])
    return len(there.unique()) == len(there) and torch.equal(there.sort().values, back.sort().values)


@pytest.mark.parametrize(("shape", "euler"), [(ball, 2), (box, 2), (donut, 0), (two_balls, 4)])
def test_surfaces_are_closed_and_have_their_euler_characteristic(shape: Callable[[Tensor], Tensor], euler: int) -> None:
    mesh = surface(shape)
    assert closed(mesh.faces)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == euler
    assert torch.equal(mesh.faces.unique(), torch.arange(len(mesh.vertices)))


@pytest.mark.parametrize(
    ("shape", "exact", "order"),
    [
        (ball, 4 / 3 * math.pi * 0.7**3, 1.8),
        (box, 8 * 0.61 * 0.47 * 0.33, 0.8),
        (donut, 2 * math.pi**2 * 0.55 * 0.24**2, 1.8),
    ],
)
def test_vertices_come_to_the_exact_surface_and_the_volume_is_outwards(
    shape: Callable[[Tensor], Tensor], exact: float, order: float
) -> None:
    coarse, fine = surface(shape, 16), surface(shape, 48)
    errors = [float(shape(mesh.vertices).abs().mean()) for mesh in (coarse, fine)]
    assert errors[1] < errors[0] / 3**order
    assert abs(volume(fine) / exact - 1) < 0.01
    assert volume(fine) > 0


def test_a_plane_is_met_exactly_and_faces_look_to_the_side_of_larger_distances() -> None:
    points = grid_points(8, 1.0).double()
    normal = torch.tensor([0.6, -0.48, 0.64], dtype=torch.float64)
    mesh = march_tetrahedra(points, points @ normal - 0.113, 8)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    inner = (mesh.vertices[mesh.faces].abs().amax(dim=(1, 2))) < 0.74
    assert int(inner.sum()) > 50
    assert float((a[inner] @ normal - 0.113).abs().max()) < 1e-12
    assert bool((torch.linalg.cross(b - a, c - a)[inner] @ normal > 0).all())


def test_noise_gives_a_closed_surface_too_and_so_does_a_solid_that_fills_the_grid() -> None:
    points, g = grid_points(9, 1.0), torch.Generator().manual_seed(0)
    noise = march_tetrahedra(points, torch.randn(1000, generator=g), 9)
    assert closed(noise.faces) and len(noise.faces) > 1000
    full = march_tetrahedra(points, -torch.ones(1000), 9)
    assert closed(full.faces) and volume(full) > 7.6
    assert bool((full.vertices.abs().amax(dim=-1) == 1).all())
    assert len(march_tetrahedra(points, torch.ones(1000), 9).faces) == 0


def test_gradients_equal_finite_differences() -> None:
    points, g = grid_points(6, 1.0).double(), torch.Generator().manual_seed(1)
    points = points + 0.05 * torch.randn(points.shape, generator=g, dtype=torch.float64)
    distance = ball(points, 0.6) + 0.05 * torch.randn(343, generator=g, dtype=torch.float64)
    weight = torch.randn(len(march_tetrahedra(points, distance, 6).vertices), 3, generator=g, dtype=torch.float64)

    def value(p: Tensor, s: Tensor) -> Tensor:
        return (weight * march_tetrahedra(p, s, 6).vertices).sum()

    p, s = points.requires_grad_(), distance.detach().requires_grad_()
    of_points, of_distance = torch.autograd.grad(value(p, s), (p, s))
    assert float(of_distance.abs().max()) > 0.1
    for k in of_distance.abs().topk(30).indices.tolist():
        step = torch.zeros(343, dtype=torch.float64)
        step[k] = 1e-7
        slope = (value(p, s + step) - value(p, s - step)) / 2e-7
        assert abs(float(slope - of_distance[k])) < 1e-5 * max(1.0, abs(float(slope)))
        shift = step[:, None] * torch.tensor([1.0, -2.0, 0.5])
        slope = (value(p + shift, s) - value(p - shift, s)) / 2e-7
        assert abs(float(slope - of_points[k] @ torch.tensor([1.0, -2.0, 0.5]).double())) < 1e-5


@pytest.mark.parametrize("tiny", [0.0, 1e-42, 1e-12])
def test_distances_of_nearly_nothing_keep_the_surface_closed_and_the_gradient_finite(tiny: float) -> None:
    points = grid_points(8, 1.0)
    distance = torch.where(ball(points, 0.62) < 0, -max(tiny, 1e-42), tiny).requires_grad_()
    mesh = march_tetrahedra(points.requires_grad_(), distance, 8)
    mesh.vertices.square().sum().backward()
    assert closed(mesh.faces) and bool(torch.isfinite(mesh.vertices).all())
    for value in (distance, points):
        assert value.grad is not None and bool(torch.isfinite(value.grad).all())


def test_other_shapes_are_refused() -> None:
    points = grid_points(4, 1.0)
    for p, s in ((points, torch.ones(64)), (points[:64], torch.ones(125)), (points[:, :2], torch.ones(125))):
        with pytest.raises(ValueError, match="expected \\(125, 3\\)"):
            march_tetrahedra(p, s, 4)
