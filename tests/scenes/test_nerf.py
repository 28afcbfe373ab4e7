"""A scene against ray-sphere intersection, and its promises: repeatable, resumable, safe when empty or out of memory.

Seen to fail: background added without (1 - opacity); views and channels exchanged in the maps; occupancy not updated;
jitter used without a generator; occupancy left out of the saved state; the flat colour shared by all views; a chunk
lost, in the gradient too; a part that ran out of memory counted twice; normals pointing inwards; the backdrop of a view
without a generator told where a random one is behind it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from threestudio_rf.scenes.background import EnvironmentBackground, SolidBackground
from threestudio_rf.scenes.base import Rendering, Surface
from threestudio_rf.scenes.camera import Camera, random_views, sphere_views
from threestudio_rf.scenes.field import HashGridField
from threestudio_rf.scenes.hashgrid import HashGrid
from threestudio_rf.scenes.nerf import HashGridNeRF


class Ball(nn.Module):
    """A hard ball of radius 0.5, red on its upper half and blue below, with a smooth density for normals."""

    def update(self, step: int) -> None:
        """A ball has no levels that join."""

    def density(self, points: Tensor) -> Tensor:
        return 40 * nn.functional.softplus((0.5 - points.norm(dim=-1)) * 300)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        top = (points[:, 2] > 0).float()
        return self.density(points), torch.stack((top, torch.zeros_like(top), 1 - top), dim=-1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(**changes: object) -> HashGridNeRF:
    settings = {"samples_per_ray": 160, "random_background": 0.0} | changes
    scene = HashGridNeRF(Ball(), SolidBackground((0.2, 1.0, 0.4)), **settings)  # type: ignore[arg-type]
    for seed in range(10):
        scene.update(0, generator(seed))
    return scene


def nerf(seed: int = 0, **changes: object) -> HashGridNeRF:
    g = generator(seed)
    grid = HashGrid(levels=3, log2_table=9, base=4, growth=1.6, generator=g)
    field = HashGridField(grid, out_features=6, hidden=8, generator=g)
    settings = {"samples_per_ray": 12, "occupancy_resolution": 8} | changes
    return HashGridNeRF(field, EnvironmentBackground(generator=g), **settings)  # type: ignore[arg-type]


def same(a: Rendering, b: Rendering, atol: float = 0.0) -> bool:
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None or y is not None]
    return all(x is not None and y is not None and torch.allclose(x, y, rtol=0, atol=atol) for x, y in pairs)


def test_a_ball_looks_like_a_ball_from_three_cameras() -> None:
    camera = sphere_views(3, height=18, width=25)
    with torch.no_grad():
        seen = ball().render(camera)
    assert seen.rgb.shape == (3, 3, 18, 25) and seen.opacity.shape == (3, 1, 18, 25)
    origins, directions = camera.rays()
    closest = torch.linalg.cross(origins, directions, dim=-1).norm(dim=-1)
    hit, clear = closest < 0.47, closest > 0.53
    opacity = seen.opacity[:, 0]
    assert opacity[hit].min() > 0.99 and opacity[clear].max() < 0.01
    along = -(origins * directions).sum(-1)
    surface = along - torch.sqrt((0.25 - closest**2).clamp(min=0))
    assert seen.depth is not None and (seen.depth[:, 0] - surface)[closest < 0.4].abs().max() < 0.03
    assert seen.z_variance is not None and seen.z_variance[:, 0][closest < 0.4].max() < 1e-3
    point = origins + surface[..., None] * directions
    colours = seen.rgb.movedim(1, -1)
    assert (colours[hit & (point[..., 2] > 0.05)] - torch.tensor([1.0, 0.0, 0.0])).abs().max() < 0.02
    assert (colours[hit & (point[..., 2] < -0.05)] - torch.tensor([0.0, 0.0, 1.0])).abs().max() < 0.02
    assert torch.allclose(colours[clear], torch.tensor([0.2, 1.0, 0.4]).expand(int(clear.sum()), 3), atol=0.01)
    assert seen.normal is None and seen.orientation is None


def test_the_map_border_is_the_opacity_of_what_is_near_the_border() -> None:
    camera = sphere_views(2, height=12, width=12)
    with torch.no_grad():
        inside = ball().render(camera)
        large = ball(radius=0.52).render(camera)
    assert inside.border is not None and inside.border.abs().max() < 1e-6
    assert large.border is not None and 0.05 < large.border.max() <= large.opacity.max()


def test_normals_of_a_ball_point_outwards_and_none_faces_away() -> None:
    camera = sphere_views(2, height=9, width=12)
    with torch.no_grad():
        seen = ball().render(camera, normals=True)
    origins, directions = camera.rays()
    closest = torch.linalg.cross(origins, directions, dim=-1).norm(dim=-1)
    assert seen.normal is not None and seen.depth is not None and seen.orientation is not None
    outwards = nn.functional.normalize(origins + seen.depth.movedim(1, -1) * directions, dim=-1)
    agreement = (seen.normal.movedim(1, -1) * outwards).sum(-1)
    assert agreement[closest < 0.4].min() > 0.94
    assert seen.orientation[:, 0][closest < 0.4].max() < 1e-3


def test_without_a_generator_a_render_repeats_and_with_one_it_follows_the_seed() -> None:
    scene, camera = nerf(), sphere_views(2, height=6, width=7)
    assert same(scene.render(camera), scene.render(camera))
    assert same(scene.render(camera, generator(3)), scene.render(camera, generator(3)))
    assert not same(scene.render(camera, generator(3)), scene.render(camera, generator(4)), atol=1e-4)


def test_a_step_repeats_bit_for_bit() -> None:
    runs = []
    for _ in range(2):
        scene = nerf()
        optimizer = torch.optim.Adam(scene.parameters(), 1e-2)
        for step in range(3):
            scene.update(step, generator(step))
            seen = scene.render(random_views(2, generator(step), height=8, width=9), generator(step))
            optimizer.zero_grad()
            seen.rgb.square().mean().backward()
            optimizer.step()
        runs.append(scene.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_saved_scene_renders_the_same_elsewhere() -> None:
    a, b, camera = nerf(0), nerf(1), sphere_views(2, height=6, width=7)
    a.update(0, generator())
    assert not same(a.render(camera), b.render(camera), atol=1e-5)
    b.load_state_dict(a.state_dict())
    assert same(a.render(camera, generator(1)), b.render(camera, generator(1)))


def test_a_batch_is_its_views_one_by_one_and_chunks_change_nothing() -> None:
    scene, camera = nerf(), sphere_views(3, height=5, width=8)
    scene.update(0, generator())
    with torch.no_grad():
        whole = scene.render(camera, normals=True)
        for i in range(3):
            one = scene.render(camera.select([i]), normals=True)
            assert same(one, Rendering(*(m[i : i + 1] for m in whole)), atol=1e-5)  # type: ignore[index]
        scene.ray_chunk = 13
        assert same(scene.render(camera, normals=True), whole, atol=1e-5)
        jittered = scene.render(camera, generator(5))
        scene.ray_chunk = 10_000
        assert same(scene.render(camera, generator(5)), jittered, atol=1e-5)


def gradients(scene: HashGridNeRF, camera: Camera, normals: bool = False) -> tuple[Rendering, list[Tensor]]:
    """A rendering and the gradient of all its maps by every parameter."""
    seen = scene.render(camera, generator(5), normals=normals)
    maps = torch.cat([x.flatten() for x in seen if x is not None])
    weights = torch.rand(len(maps), generator=generator(6)) - 0.3
    found = torch.autograd.grad((maps * weights).sum(), list(scene.parameters()))
    return seen, list(found)


@pytest.mark.parametrize(("normals", "tolerance"), [(False, 1e-6), (True, 1e-5)])
def test_the_gradient_in_chunks_is_that_of_the_whole_graph(normals: bool, tolerance: float) -> None:
    """Normals are differences of densities, which rounding moves more."""
    scene, camera = nerf(random_background=0.0), sphere_views(3, height=6, width=7)
    torch.nn.init.normal_(scene.field.encoding.table, generator=generator(9))  # type: ignore[arg-type]
    whole, expected = gradients(scene, camera, normals)
    for chunk in (125, 50, 1):
        scene.ray_chunk = chunk
        seen, found = gradients(scene, camera, normals)
        assert same(seen, whole, atol=1e-5)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= tolerance * b.norm() and b.norm() > 0


def test_no_more_rays_than_a_chunk_have_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, camera, alive = nerf(ray_chunk=20, random_background=0.0), sphere_views(2, height=6, width=7), []
    rays = scene._rays

    def watched(origins: Tensor, *args: object) -> Tensor:
        alive.append((len(origins), torch.is_grad_enabled()))
        return rays(origins, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(scene, "_rays", watched)
    gradients(scene, camera)
    assert alive == [(n, graph) for graph in (False, True) for n in (20, 20, 20, 20, 4)]


def test_how_many_rays_fit_is_told_by_the_fullest_part_of_the_picture() -> None:
    """Not by the last one, a corner without anything: the next picture would be rendered all at once."""
    scene, camera, counts = nerf(ray_chunk=40), sphere_views(1, height=20, width=20), []
    scene.update(0, generator())
    with torch.no_grad():
        scene.render(camera)
        march = scene._march
        scene._march = lambda *a, **o: counts.append(len((found := march(*a, **o)).distance) / len(a[0])) or found  # type: ignore[func-returns-value]
        scene.render(camera)
    assert counts[-1] < scene._per_ray == max(counts) and len(counts) == 10


def test_out_of_memory_halves_the_chunk_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, camera = nerf(random_background=0.0), sphere_views(2, height=6, width=7)
    whole, expected = gradients(scene, camera)
    march, tried = scene._march, []

    def small(origins: Tensor, *args: object, **options: object) -> object:
        tried.append(len(origins))
        if len(origins) > 12:
            raise torch.OutOfMemoryError("no memory for so many rays")
        return march(origins, *args, **options)

    monkeypatch.setattr(scene, "_march", small)
    with torch.no_grad():
        assert same(scene.render(camera, generator(5)), whole, atol=1e-5)
    assert tried == [84, 42, 21, *[10] * 8, 4]
    tried.clear()
    seen, found = gradients(scene, camera)
    assert same(seen, whole, atol=1e-5) and tried == [84, *[42, 21, *[10] * 8, 4] * 2]
    assert all((a - b).norm() <= 1e-6 * b.norm() for a, b in zip(found, expected, strict=True))
    monkeypatch.setattr(scene, "_march", lambda *_, **__: march and small(torch.zeros(13, 3)))
    for context in (torch.no_grad(), torch.enable_grad()):
        with context, pytest.raises(torch.OutOfMemoryError):
            scene.render(camera)


def test_an_empty_scene_shows_its_background_and_can_be_trained() -> None:
    scene, camera = nerf(), random_views(2, generator(), height=6, width=7)
    scene.occupancy.occupied.zero_()
    seen = scene.render(camera, generator(), normals=True)
    assert seen.opacity.abs().max() == 0 and seen.depth is not None and seen.depth.abs().max() == 0
    (seen.rgb.sum() + seen.opacity.sum() + seen.z_variance.sum()).backward()  # type: ignore[union-attr]
    table = scene.field.encoding.table
    assert isinstance(table, nn.Parameter) and table.grad is not None and table.grad.abs().sum() == 0
    with torch.no_grad():
        directions = camera.rays()[1]
        behind = scene.background(directions.reshape(-1, 3)).view_as(directions).movedim(-1, 1)
        assert torch.allclose(scene.render(camera).rgb, behind)


def test_a_camera_that_looks_away_sees_only_background() -> None:
    scene = nerf()
    scene.occupancy.occupied.zero_()
    scene.occupancy.occupied.view(8, 8, 8)[:2, :2, :2] = True
    camera = Camera(torch.zeros(1), torch.zeros(1), torch.ones(1) * 4, torch.ones(1) * 5, 3, 5)
    assert scene.render(camera, generator()).opacity.abs().max() == 0


def test_each_view_gets_its_own_flat_random_colour() -> None:
    scene, camera = nerf(random_background=1.0), sphere_views(3, height=4, width=5)
    scene.occupancy.occupied.zero_()
    rgb = scene.render(camera, generator(1)).rgb
    assert (rgb - rgb[:, :, :1, :1]).abs().max() == 0
    assert torch.pdist(rgb[:, :, 0, 0]).min() > 0.05
    assert scene.render(camera).rgb[0, :, 0].std(dim=-1).max() > 0, "without a generator it is the environment"


def test_what_is_left_without_the_backdrop_is_the_object_whatever_is_behind_it() -> None:
    camera, alone = sphere_views(3, height=6, width=7), []
    for scene, draws in ((nerf(random_background=1.0), generator(1)), (nerf(), None), (nerf(), generator(2))):
        scene.update(0, generator())
        seen = scene.render(camera, draws)
        assert seen.backdrop is not None and seen.backdrop.shape == seen.rgb.shape
        alone.append(seen.rgb - (1 - seen.opacity) * seen.backdrop)
    assert float(alone[0].max()) > 0.05 and all(float((x - alone[0]).abs().max()) < 0.05 for x in alone), "jitter only"
    plain = nerf(random_background=1.0)
    plain.occupancy.occupied.zero_()
    empty = plain.render(camera, generator(3))
    assert empty.backdrop is not None and torch.equal(empty.rgb, empty.backdrop)


def test_the_probability_of_a_random_background_is_kept() -> None:
    scene, camera = nerf(random_background=0.3), sphere_views(400, height=1, width=2)
    scene.occupancy.occupied.zero_()
    rgb = scene.render(camera, generator(1)).rgb
    flat = (rgb[..., 0] == rgb[..., 1]).all(dim=1).float().mean()
    assert abs(float(flat) - 0.3) < 0.07
    scene.random_background = 0.0
    assert same(scene.render(camera, generator(1)), scene.render(camera))


def test_gradients_reach_the_field_and_the_background() -> None:
    scene = nerf(random_background=0.0)
    scene.update(0, generator())
    seen = scene.render(random_views(2, generator(), height=8, width=9), generator(), normals=True)
    (seen.rgb.square().mean() + seen.normal.square().mean()).backward()  # type: ignore[union-attr]
    for name, p in scene.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_the_occupancy_follows_the_field_every_few_steps() -> None:
    scene = nerf(update_every=4)
    scene.update(3, generator())
    assert scene.occupancy.occupied.all()
    scene.update(4, generator())
    share = float(scene.occupancy.occupied.float().mean())
    assert 0 < share < 4 / 3 * math.pi * 0.75**3 / 8


def test_the_reason_for_the_marching_backend_is_known_after_a_render() -> None:
    scene = nerf()
    scene.render(sphere_views(1, height=2, width=3))
    assert scene.marching_reason.startswith("marching: torch")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="samples_per_ray"):
        nerf(samples_per_ray=0)
    with pytest.raises(ValueError, match="random_background"):
        nerf(random_background=1.5)


def test_its_groups_are_the_grid_its_network_and_the_background_and_it_is_a_surface() -> None:
    made = nerf()
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    first = {group: {names[id(p)].rsplit(".", 2)[0] for p in parameters} for group, parameters in made.groups().items()}
    assert list(first) == ["encoding", "networks", "background"]
    assert sorted(names) == sorted(id(p) for parameters in made.groups().values() for p in parameters)
    assert all(name.startswith("background") for name in first["background"])
    points = torch.rand(5, 3) - 0.5
    assert isinstance(made, Surface) and made.radius == made.field.radius
    assert torch.equal(made.density(points), made.field.density(points))
    assert torch.equal(made.colour(points), made.field(points)[1])
