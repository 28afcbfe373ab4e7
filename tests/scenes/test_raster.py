"""The rasteriser against brute force: every ray of `Camera.rays` against every triangle (Moeller and Trumbore 1997).

Seen to fail: y not turned over; the farthest face instead of the nearest; weights without the division by z; strict
instead of inclusive edges; a face behind the camera drawn; the depth's bits as they are for a chunk of its own only.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.surface import raster
from threestudio_rf.scenes.surface.raster import barycentric, interpolate, project, rasterize, spread


def camera(height: int = 24, width: int = 32) -> Camera:
    turn, up = torch.tensor([30.0, -100.0, 170.0]).double(), torch.tensor([10.0, 50.0, -80.0]).double()
    return Camera(
        turn, up, torch.tensor([1.8, 2.0, 1.6]).double(), torch.tensor([46.0, 40.0, 60.0]).double(), height, width
    )


def soup(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 1, 3, generator=g, dtype=torch.float64) - 0.5
    vertices = middle + 0.5 * (torch.rand(count, 3, 3, generator=g, dtype=torch.float64) - 0.5)
    return vertices.view(-1, 3), torch.arange(3 * count).view(-1, 3)


def brute(vertices: Tensor, faces: Tensor, seen_by: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Nearest face (B, H, W), -1 for none, its distance along the ray, and the weights of its corners (B, H, W, 3)."""
    origin, direction = (x[..., None, :] for x in seen_by.rays())
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    t = ((a - origin) * normal).sum(-1) / (direction * normal).sum(-1)
    point = origin + t[..., None] * direction
    area = normal.square().sum(-1)
    sides = [((q - p).expand_as(point), point - p) for p, q in ((b, c), (c, a), (a, b))]
    w = torch.stack([(torch.linalg.cross(*side) * normal).sum(-1) / area for side in sides], -1)
    t = torch.where((w >= 0).all(-1) & (t > 0), t, torch.inf)
    distance, face = t.min(-1)
    w = w.gather(-2, face[..., None, None].expand(*face.shape, 1, 3))[..., 0, :]
    return torch.where(distance.isinf(), -1, face), distance, w


def test_a_projection_inverts_the_rays_of_the_camera() -> None:
    seen_by = camera()
    origin, direction = seen_by.rays()
    for view in range(3):
        points = (origin + 1.3 * direction)[view].reshape(-1, 3)
        screen = project(points, seen_by)
        x, y = (part[view].view(24, 32) for part in screen[:2])
        assert torch.allclose(x, (torch.arange(32) + 0.5).double().expand(24, 32), atol=1e-5)
        assert torch.allclose(y, (torch.arange(24) + 0.5).double()[:, None].expand(24, 32), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_faces_weights_and_depths_equal_brute_force(seed: int) -> None:
    (vertices, faces), seen_by = soup(seed=seed), camera()
    face, distance, weights = brute(vertices, faces, seen_by)
    screen = project(vertices, seen_by)
    found = rasterize(screen, faces)
    ours = torch.full((3 * 24 * 32,), -1).index_copy(0, found.cell, found.face)
    assert torch.equal(ours, face.view(-1))
    w = barycentric(screen, faces, found)
    assert torch.allclose(w.t(), weights.view(-1, 3)[found.cell], atol=1e-5)
    colours = torch.rand(4, len(vertices), dtype=torch.float64)
    maps = spread(interpolate(colours, faces, found, w), found, screen).view(4, -1)
    expected = torch.einsum("pk,cpk->cp", weights.view(-1, 3), colours[:, faces[face.view(-1)]])
    assert torch.allclose(maps, torch.where(face.view(-1) >= 0, expected, 0), atol=1e-5)
    points = interpolate(vertices.t(), faces, found, w)
    reach = (points - seen_by.position[found.view].t()).norm(dim=0)
    assert torch.allclose(reach, distance.view(-1)[found.cell], atol=1e-5)


def sphere(subdivisions: int = 2) -> tuple[Tensor, Tensor]:
    import trimesh

    made = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.5)
    return torch.tensor(made.vertices), torch.tensor(made.faces).long()


def test_culling_shows_the_same_picture_of_a_closed_mesh() -> None:
    vertices, faces = sphere()
    screen = project(vertices, camera())
    both, front = rasterize(screen, faces), rasterize(screen, faces, cull=True)
    assert len(front.face) > 300
    assert torch.equal(both.cell, front.cell) and torch.equal(both.face, front.face)
    inside_out = rasterize(screen, faces.flip(1), cull=True)
    assert torch.equal(inside_out.cell, front.cell) and not (inside_out.face == front.face).any()


@pytest.mark.parametrize("jitter", [0.0, 0.37])
def test_a_plane_of_many_faces_has_no_hole_and_covers_no_pixel_twice(jitter: float) -> None:
    g, n = torch.Generator().manual_seed(3), 40
    axis = torch.linspace(-2.0, 2.0, n)
    y, z = torch.meshgrid(axis, axis, indexing="ij")
    vertices = torch.stack((torch.zeros_like(y), y, z), -1).view(-1, 3)
    vertices[:, 1:] += jitter * 4 / n * (torch.rand(n * n, 2, generator=g) - 0.5)
    i = torch.arange(n * n).view(n, n)
    a, b, c, d = i[:-1, :-1], i[1:, :-1], i[1:, 1:], i[:-1, 1:]
    faces = torch.cat((torch.stack((a, b, c), -1).view(-1, 3), torch.stack((a, c, d), -1).view(-1, 3)))
    seen_by = Camera(*(torch.tensor([v]) for v in (0.0, 0.0, 1.5, 46.0)), 64, 64)
    found = rasterize(project(vertices, seen_by), faces)
    assert torch.equal(found.cell, torch.arange(64 * 64))


def test_centres_on_edges_and_corners_are_covered() -> None:
    square = torch.tensor([[0.5, 0.5], [3.5, 0.5], [3.5, 3.5], [0.5, 3.5]])
    screen = raster.Screen(square[None, :, 0], square[None, :, 1], torch.ones(1, 4), 5, 5)
    found = rasterize(screen, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(found.cell, expected.view(-1).nonzero()[:, 0])
    assert torch.equal(found.face[found.cell % 6 == 0], torch.zeros(4, dtype=torch.int64))


def test_pieces_of_any_size_give_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    (vertices, faces), seen_by = soup(seed=4), camera()
    whole = rasterize(project(vertices, seen_by), faces)
    monkeypatch.setattr(raster, "CHUNK", 50)
    assert all(torch.equal(a, b) for a, b in zip(whole, rasterize(project(vertices, seen_by), faces), strict=True))


def test_nothing_is_drawn_of_faces_without_area_behind_the_camera_or_not_finite() -> None:
    seen_by = camera()
    vertices = torch.tensor(
        [[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [40, 0, 0], [40, 1, 0], [40, 0, 1], [torch.nan, 0, 0], [0, 0.3, 0.3]]
    ).double()
    front = Camera(
        *(v[:1] for v in (seen_by.azimuth * 0, seen_by.elevation * 0, seen_by.distance, seen_by.fovy)), 24, 32
    )
    for face in ([0, 1, 2], [0, 0, 7], [3, 4, 5], [6, 0, 7]):
        assert len(rasterize(project(vertices, front), torch.tensor([face])).cell) == 0, face
    none = rasterize(project(vertices, seen_by), torch.zeros(0, 3, dtype=torch.int64))
    assert len(none.cell) == 0
    screen = project(vertices, seen_by)
    maps = spread(interpolate(vertices.t(), torch.zeros(0, 3).long(), none, torch.zeros(3, 0).double()), none, screen)
    assert maps.shape == (3, 3 * 24 * 32) and not maps.any()


def test_faces_of_another_shape_are_refused() -> None:
    vertices, faces = soup()
    for wrong in (faces.int(), faces[:, :2], faces[0]):
        with pytest.raises(ValueError, match="expected \\(F, 3\\) int64"):
            rasterize(project(vertices, camera()), wrong)
