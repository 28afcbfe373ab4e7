"""A mesh as a scene: against ray and sphere, a volume of the same shape, its gradient, and its promises.

Seen to fail: the background without (1 - opacity); the gradient of the distance cut off; a cell moved twice; density
without the grid's own moves; depth not divided by opacity; the surface's gradient let into the colours; no
terms; the moves of the grid kept by a new beginning; density beyond the cube; the field not told the step.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.background import SolidBackground
from threestudio_rf.scenes.base import Meshed
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.scenes.field import Bands, HashGridField
from threestudio_rf.scenes.hashgrid import HashGrid
from threestudio_rf.scenes.mesh import MeshScene


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mesh(resolution: int = 24, **changes: float) -> MeshScene:
    g = generator()
    field = HashGridField(
        HashGrid(levels=4, log2_table=10, base=4, growth=1.6, generator=g), out_features=8, generator=g
    )
    settings = {"radius": 0.6, "random_background": 0.0, "ball": 0.7} | changes
    return MeshScene(field, SolidBackground((0.2, 1.0, 0.4)), resolution=resolution, **settings)  # type: ignore[arg-type]


def views(size: int = 48) -> Camera:
    return sphere_views(3, height=size, width=size)


def test_a_ball_is_seen_where_rays_meet_it() -> None:
    scene, camera = mesh(40), views()
    seen = scene.render(camera, normals=True)
    origins, directions = camera.rays()
    along = -(origins * directions).sum(-1)
    aside = (origins + along[..., None] * directions).norm(dim=-1)
    hit = aside < 0.42 - 0.05
    distance = along - (0.42**2 - aside.square()).clamp(min=0).sqrt()
    assert bool((seen.opacity[:, 0][hit] == 1).all()) and not seen.opacity[:, 0][aside > 0.42 + 0.05].any()
    assert seen.depth is not None and seen.normal is not None and seen.orientation is not None
    assert float((seen.depth[:, 0] - distance)[hit].abs().max()) < 0.02
    normal = (origins + distance[..., None] * directions) / 0.42
    assert float(((seen.normal.movedim(1, -1) * normal).sum(-1))[hit].min()) > 0.98
    assert float(seen.orientation.max()) < 0.05
    green = torch.tensor([0.2, 1.0, 0.4])[:, None]
    assert torch.allclose(seen.rgb.movedim(1, 0)[:, aside > 0.47], green.expand(-1, int((aside > 0.47).sum())))


def test_what_is_left_without_the_backdrop_is_the_mesh() -> None:
    scene, camera = mesh(), views()
    seen = scene.render(camera)
    assert seen.backdrop is not None
    scene.background = SolidBackground((0.0, 0.0, 0.0))
    assert torch.allclose(scene.render(camera).rgb, seen.rgb - (1 - seen.opacity) * seen.backdrop, rtol=0, atol=1e-6)


def test_inside_is_the_colour_of_the_field_and_outlines_are_blended_with_what_is_behind() -> None:
    scene, camera = mesh(40), views()
    seen = scene.render(camera)
    origins, directions = camera.rays()
    assert seen.depth is not None
    opacity, depth = seen.opacity.movedim(1, -1), seen.depth.movedim(1, -1)
    colours = scene.colour((origins + depth * directions).reshape(-1, 3)).view_as(origins)
    blend = opacity * colours + (1 - opacity) * torch.tensor([0.2, 1.0, 0.4])
    partly = (opacity > 0.05) & (opacity < 0.95)
    assert (
        int(partly.sum()) > 50 and float((seen.rgb.movedim(1, -1) - blend)[opacity[..., 0] > 0.05].abs().max()) < 0.02
    )
    tangent = (origins.norm(dim=-1).square() - 0.42**2).sqrt()[..., None]
    assert float((depth - tangent)[partly].abs().max()) < 0.2


def test_a_render_repeats_and_its_background_follows_the_generator() -> None:
    scene = mesh(random_background=1.0)
    first, second, fixed = (scene.render(views(16), g).rgb for g in (generator(1), generator(1), None))
    assert torch.equal(first, second) and not torch.allclose(first, fixed)


def test_outlines_move_the_surface_and_colours_reach_the_field_only() -> None:
    scene = mesh()
    scene.render(views()).opacity.mean().backward()
    assert scene.distance.grad is not None and float(scene.distance.grad.sum()) < 0  # smaller distances: a larger ball
    assert scene.offset.grad is not None and bool((scene.offset.grad != 0).any())
    assert all(p.grad is None or not p.grad.any() for p in scene.field.parameters())
    scene.zero_grad()
    inner = scene.render(views()).rgb[:, :, 20:28, 20:28].mean()
    inner.backward()
    assert not scene.distance.grad.any()
    assert any(p.grad is not None and bool(p.grad.any()) for p in scene.field.parameters())


def test_a_ball_grows_to_its_target() -> None:
    scene, camera = mesh(16, ball=0.6), views(24)
    target = mesh(16, ball=0.75).render(camera).opacity.detach()
    optimiser = torch.optim.Adam(scene.groups()["geometry"], lr=0.1)
    errors = []
    for _ in range(20):
        optimiser.zero_grad()
        opacity = scene.render(camera).opacity
        (opacity - target).square().mean().backward()
        optimiser.step()
        errors.append((opacity - target).abs().mean().item())
    assert errors[-1] < errors[0] / 4 and abs(opacity.mean().item() / target.mean().item() - 1) < 0.05


def test_its_density_is_solid_inside_of_its_own_mesh_also_where_the_grid_has_moved() -> None:
    scene = mesh(16)
    assert isinstance(scene, Meshed)
    with torch.no_grad():
        scene.offset.copy_(0.5 * torch.randn(scene.offset.shape, generator=generator(2)))
        found = scene.surface()
        points, cell = found.vertices, scene.cell
        out = points / points.norm(dim=-1, keepdim=True)
        assert float((scene.density(points + 0.3 * cell * out) == 0).float().mean()) > 0.95
        assert float((scene.density(points - 0.3 * cell * out) == 2 * scene.level).float().mean()) > 0.95
    scene.begin(torch.full_like(scene.distance, -1.0))
    solid = scene.density(torch.tensor([[0.59, 0.0, 0.0], [0.61, 0.0, 0.0]]))
    assert solid[0] > scene.level and solid[1] == 0


def test_it_begins_with_the_distance_and_the_colours_it_is_given() -> None:
    scene = mesh(32)
    with torch.no_grad():
        scene.offset.fill_(1.0)
    scene.begin((scene.grid - 0.1).abs().amax(-1) - 0.31)
    assert not scene.offset.any()
    points = scene.surface().vertices.detach()
    assert float(((points - 0.1).abs().amax(-1) - 0.31).abs().max()) < 0.02
    wanted = (points / 1.2 + 0.5).clamp(0, 1)
    assert scene.paint(points, wanted, steps=60, generator=generator()) < 0.06
    with pytest.raises(ValueError, match="expected \\(35937,\\)"):
        scene.begin(torch.zeros(5))


def test_an_empty_mesh_is_drawn_as_background_and_its_terms_are_zero() -> None:
    scene = mesh(8)
    assert scene.terms() == {}
    scene.begin(torch.ones(729))
    seen = scene.render(views(8), normals=True)
    assert not seen.opacity.any() and torch.allclose(seen.rgb[0, :, 0, 0], torch.tensor([0.2, 1.0, 0.4]))
    assert set(scene.terms()) == {"laplacian", "normal_consistency", "convex"}
    total: Tensor = sum((term() for term in scene.terms().values()), seen.opacity.sum())
    total.backward()
    assert total.item() == 0


def test_levels_of_the_field_join_by_the_steps_of_the_mesh() -> None:
    g = generator()
    grid = HashGrid(levels=4, log2_table=10, base=4, growth=1.6, generator=g)
    field = HashGridField(grid, out_features=8, bands=Bands(1, 0, 10, width=2), generator=g)
    scene, points = MeshScene(field, SolidBackground((0, 0, 0)), resolution=8), torch.rand(20, 3, generator=g)
    scene.update(0, g)
    first = scene.colour(points)
    scene.update(100, g)
    assert not torch.equal(first, scene.colour(points))


def test_a_stored_scene_is_the_same_scene() -> None:
    scene, other = mesh(), mesh(ball=0.3)
    with torch.no_grad():
        scene.offset.normal_(generator=generator(3))
    other.load_state_dict(scene.state_dict())
    assert torch.equal(scene.render(views(16)).rgb, other.render(views(16)).rgb)
    assert "grid" not in scene.state_dict()


def test_impossible_sizes_are_refused() -> None:
    for changes in ({"radius": 0.0}, {"reach": 1.0}, {"ball": 1.0}, {"random_background": 2.0}):
        with pytest.raises(ValueError, match="mesh expects"):
            mesh(**changes)
