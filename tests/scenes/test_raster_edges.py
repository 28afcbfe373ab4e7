"""Outlines: finite differences of pixels, areas in closed form, and a square that goes where it should.

Seen to fail: the blend's sign; half of the share; flat edges taken for steep ones; edges behind another surface
blended; shares that add up to more than 1; faces taken to run opposite ways along every edge;
folds before the last one blended too; shares of row and column added.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.surface.edges import antialias, crossings, edges_of
from threestudio_rf.scenes.surface.raster import Screen, barycentric, interpolate, project, rasterize, spread


def sphere(subdivisions: int) -> tuple[Tensor, Tensor]:
    import trimesh

    made = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.5)
    return torch.tensor(made.vertices), torch.tensor(made.faces).long()


def soup(count: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 1, 3, generator=g, dtype=torch.float64) - 0.5
    vertices = middle + 0.6 * (torch.rand(count, 3, 3, generator=g, dtype=torch.float64) - 0.5)
    return vertices.view(-1, 3), torch.arange(3 * count).view(-1, 3)


def picture(vertices: Tensor, faces: Tensor, colours: Tensor, seen_by: Camera) -> Tensor:
    """Maps (C + 1, B, H, W): colours over nothing, and the cover."""
    return drawn(project(vertices, seen_by), faces, colours)


def drawn(screen: Screen, faces: Tensor, colours: Tensor) -> Tensor:
    found = rasterize(screen, faces)
    w = barycentric(screen, faces, found)
    seen = interpolate(colours, faces, found, w)
    flat = torch.arange(len(screen.x))[:, None] * screen.x.shape[1]
    z = screen.z.reshape(-1)[(flat[found.view] + faces[found.face]).t()]
    depth = torch.full((len(screen.x) * screen.height * screen.width,), torch.inf, dtype=w.dtype)
    depth = depth.index_copy(0, found.cell, (w * z).sum(0).detach())
    maps = spread(torch.cat((seen, torch.ones_like(seen[:1]))), found, screen)
    maps = antialias(maps, crossings(screen, edges_of(faces), depth))
    return maps.view(-1, len(screen.x), screen.height, screen.width)


def views(size: int = 20) -> Camera:
    return Camera(
        *(torch.tensor(v).double() for v in ([20.0, -130.0], [15.0, 60.0], [1.8, 1.8], [46.0, 46.0])), size, size
    )


def flat_on(points: Tensor, size: int) -> Screen:
    """Points (V, 2) in pixels, at depth 1."""
    return Screen(points[None, :, 0], points[None, :, 1], torch.ones(1, len(points), dtype=points.dtype), size, size)


def test_every_edge_is_listed_once_with_the_corners_beside_it() -> None:
    vertices, faces = sphere(1)
    edges = edges_of(faces)
    assert edges.ends.shape[1] == len(vertices) + len(faces) - 2 and bool(edges.inner.all())
    alone = edges_of(faces[:1])
    assert alone.ends.shape[1] == 3 and not alone.inner.any()
    three = edges_of(torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))
    assert not bool(three.inner[(three.ends == torch.tensor([[0], [1]])).all(0)].any())


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_with_respect_to_vertices_equal_finite_differences(seed: int) -> None:
    vertices, faces = sphere(1) if seed else soup(6, seed=5)
    g = torch.Generator().manual_seed(seed)
    colours = torch.rand(3, len(vertices), generator=g, dtype=torch.float64)
    weight = torch.randn(4, 2, 20, 20, generator=g, dtype=torch.float64)
    vertices = vertices.clone().requires_grad_()

    def value(at: Tensor) -> Tensor:
        return (weight * picture(at, faces, colours, views())).sum()

    (found,) = torch.autograd.grad(value(vertices), vertices)
    step, place = 1e-6, vertices.detach()
    expected = torch.zeros_like(place)
    for k in range(place.numel()):
        shift = torch.zeros_like(place).view(-1).index_fill(0, torch.tensor(k), step).view_as(place)
        expected.view(-1)[k] = (value(place + shift) - value(place - shift)) / (2 * step)
    assert float(expected.abs().max()) > 1
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_the_cover_of_a_square_is_its_area_wherever_it_lies() -> None:
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    corners = torch.tensor([[0.0, 0.0], [6.3, 0.0], [6.3, 4.8], [0.0, 4.8]], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    for shift in 3 + 4 * torch.rand(20, 2, generator=g, dtype=torch.float64):
        at = (corners + shift).requires_grad_()
        cover = drawn(flat_on(at, 20), faces, torch.ones(1, 4).double())[1, 0]
        middle = int(shift[1] + 2.4)
        assert abs(cover[middle].sum().item() - 6.3) < 1e-9 and abs(cover.sum().item() - 6.3 * 4.8) < 1
        (grad,) = torch.autograd.grad(cover[middle].sum(), at)
        assert abs(grad[1:3, 0].sum().item() - 1) < 1e-9 and abs(grad[[0, 3], 0].sum().item() + 1) < 1e-9


@pytest.mark.parametrize("subdivisions", [2, 5])
def test_the_cover_of_a_ball_grows_with_its_radius_as_a_disk_also_where_faces_are_smaller_than_pixels(
    subdivisions: int,
) -> None:
    vertices, faces = sphere(subdivisions)
    seen_by = views(40)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    cover = picture(vertices * scale, faces, torch.ones(1, len(vertices)).double(), seen_by)[1].sum()
    # the outline of a ball of radius r at distance d is a cone of tangent r / sqrt(d^2 - r^2)
    focal = 40 / (2 * math.tan(math.radians(23)))
    radius, distance = 0.5 * (0.985 if subdivisions == 2 else 1.0), 1.8
    area = 2 * math.pi * focal**2 * radius**2 / (distance**2 - radius**2)
    slope = 2 * area * (1 + radius**2 / (distance**2 - radius**2))
    assert abs(cover.item() / area - 1) < 0.02
    assert abs(torch.autograd.grad(cover, scale)[0].item() / slope - 1) < 0.05


def test_a_pixel_of_a_rough_surface_is_covered_by_half_where_its_centre_sees_it() -> None:
    vertices, faces = sphere(5)
    rough = vertices * (1 + 0.03 * torch.rand(len(vertices), 1, generator=torch.Generator().manual_seed(1)))
    seen_by = views(40)
    cover = picture(rough, faces, torch.ones(1, len(rough)).double(), seen_by)[1]
    screen = project(rough, seen_by)
    found = rasterize(screen, faces)
    centre = spread(torch.ones(1, len(found.cell)), found, screen).view_as(cover)
    assert torch.equal(cover > 0.5, centre > 0.5)


def test_a_hidden_outline_changes_nothing() -> None:
    back = torch.tensor([[-0.2, -0.1, -0.1], [-0.2, 0.15, -0.1], [-0.2, 0.0, 0.15]]).double().requires_grad_()
    front = torch.tensor([[0.1, -0.6, -0.6], [0.5, 0.6, -0.6], [0.2, 0.0, 0.6]]).double()
    faces = torch.arange(6).view(2, 3)
    colours = torch.rand(3, 6, dtype=torch.float64)
    seen_by = Camera(*(torch.tensor([v]).double() for v in (0.0, 0.0, 1.8, 46.0)), 20, 20)
    both = picture(torch.cat((back, front)), faces, colours, seen_by)
    alone = picture(front, faces[:1], colours[:, 3:], seen_by)
    assert torch.allclose(both, alone)
    assert not torch.autograd.grad(both.square().sum(), back)[0].any()


def test_outlines_are_the_same_whichever_way_faces_run() -> None:
    vertices, faces = sphere(1)
    turned = torch.where(torch.arange(len(faces))[:, None] % 3 == 0, faces.flip(1), faces)
    colours = torch.rand(3, len(vertices), dtype=torch.float64)
    assert torch.allclose(picture(vertices, turned, colours, views()), picture(vertices, faces, colours, views()))


def test_blended_colours_stay_between_those_that_are_blended() -> None:
    spikes = torch.tensor([[2.4, 2.4], [17.2, 3.9], [3.6, 3.3], [9.0, 17.0], [3.4, 2.6]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 3, 4]])
    maps = drawn(flat_on(spikes, 20), faces, torch.ones(1, 5).double())
    assert float(maps.min()) >= 0 and float(maps.max()) <= 1 + 1e-12


def test_a_square_moves_to_where_its_target_is() -> None:
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    corners = torch.tensor([[-4.0, -4.0], [4.0, -3.0], [4.0, 4.0], [-4.0, 4.0]])
    goal = torch.tensor([17.3, 14.6])
    target = drawn(flat_on(corners + goal, 30), faces, torch.ones(1, 4)).detach()
    at = torch.tensor([12.0, 11.0], requires_grad=True)
    optimiser = torch.optim.Adam([at], lr=0.3)
    for step in range(80):
        optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 80)
        optimiser.zero_grad()
        (drawn(flat_on(corners + at, 30), faces, torch.ones(1, 4)) - target).square().sum().backward()
        optimiser.step()
    assert float((at - goal).norm()) < 0.1
