"""Shading against Lambert's law, and scenes that stay as they are without it.

Seen to fail: the cosine of the wrong side; the ambient share added once more; white left out; light before its step;
normals of the field by four values at the corners of a tetrahedron; neighbours beyond the border; a cone of 30 or 90
degrees; one share of light from all sides for all views; a part of a batch lit as the first views of it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.background import SolidBackground
from threestudio_rf.scenes.base import Scene
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.scenes.field import HashGridField, normals_by_differences
from threestudio_rf.scenes.hashgrid import HashGrid
from threestudio_rf.scenes.mesh import MeshScene
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.scenes.shade import Light, Shading, shade


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(count: int = 2, size: int = 16) -> Camera:
    return sphere_views(count, height=size, width=size)


def scene(kind: str, shading: Shading | None) -> Scene:
    g = generator()
    grid = HashGrid(levels=3, log2_table=9, base=4, growth=1.6, generator=g)
    field = HashGridField(grid, out_features=6, hidden=8, blob_density=60.0, generator=g)
    behind = SolidBackground((0.0, 0.0, 0.0))
    if kind == "nerf":
        return HashGridNeRF(field, behind, samples_per_ray=32, random_background=0.0, shading=shading)
    return MeshScene(field, behind, resolution=12, random_background=0.0, shading=shading)


def test_a_surface_is_as_bright_as_lambert_says() -> None:
    points, normals = torch.zeros(4, 3), torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, -1], [1, 0, 0]])
    light = Light(torch.tensor([[0.0, 3, 3]]).expand(4, 3), torch.full((4,), 0.1), torch.tensor([0.0, 1, 0, 0]))
    albedo = torch.tensor([0.8, 0.4, 0.2]).expand(4, 3)
    cosine = 0.5**0.5
    expected = torch.stack([albedo[0] * (0.1 + 0.9 * cosine), torch.full((3,), 0.1 + 0.9 * cosine)])
    assert torch.allclose(shade(albedo, points, normals, light)[:2], expected)
    assert torch.allclose(shade(albedo, points, normals, light)[2:], 0.1 * albedo[:2])
    plain = Light(light.position, torch.ones(4), torch.zeros(4))
    assert torch.allclose(shade(albedo, points, normals, plain), albedo)


def test_the_shares_of_lit_and_of_white_views_and_the_lights_distance_are_those_asked_for() -> None:
    camera, shading = views(4000), Shading(5, diffuse=0.75, textureless=0.5, spread=0.5)
    assert shading.draw(camera, 4, generator()) is None and shading.draw(camera, 5, None) is None
    light = shading.draw(camera, 5, generator())
    assert light is not None
    lit = light.ambient < 1
    assert abs(lit.float().mean().item() - 0.75) < 0.03
    assert abs(light.white[lit].mean().item() - 0.5) < 0.03 and not light.white[~lit].any()
    away = light.position.norm(dim=-1)
    assert 0.8 <= away.min().item() < 0.82 and 1.48 < away.max().item() <= 1.5 + 1e-6
    side = (light.position * camera.position).sum(-1) / away / camera.position.norm(dim=-1)
    assert side.mean().item() > 0.8


def test_magic3ds_light_stands_within_60_degrees_of_the_camera_and_draws_its_ambient_share() -> None:
    camera = sphere_views(4000, elevation=(-89.9, 89.9), height=4, width=4)
    light = Shading(0, diffuse=1.0, law="cone", soft=True).draw(camera, 0, generator())
    assert light is not None
    axis = torch.nn.functional.normalize(camera.position, dim=-1)
    away = torch.rad2deg(torch.acos((torch.nn.functional.normalize(light.position, dim=-1) * axis).sum(-1)))
    assert 59 < away.max() <= 60.01 and abs(away.mean().item() - 30) < 1 and abs(away.std().item() - 60 / 12**0.5) < 0.5
    side = torch.linalg.cross(axis, light.position)  # which way it is turned: as often to one side as to the other
    assert abs((side[:, 2] > 0).float().mean().item() - 0.5) < 0.03
    assert abs(light.ambient.mean().item() - 0.5) < 0.02 and abs(light.ambient.std().item() - 12**-0.5) < 0.01
    plain = Shading(0, diffuse=1.0).draw(camera, 0, generator())
    assert plain is not None and plain.ambient.unique().tolist() == pytest.approx([0.1])
    with pytest.raises(ValueError, match="got the law 'sun', expected normal or cone"):
        Shading(0, law="sun")  # type: ignore[arg-type]


@pytest.mark.parametrize("soft", [False, True])
def test_views_of_a_part_of_a_batch_are_lit_as_in_the_whole(soft: bool) -> None:
    camera, shading = views(6), Shading(0, diffuse=1.0, soft=soft)
    whole, part = shading.draw(camera, 0, generator()), shading.draw(camera.share(1, 3), 0, generator())
    assert whole is not None and part is not None
    for ours, theirs in zip(part, whole, strict=True):
        assert torch.allclose(ours, theirs[2:4], atol=1e-6)


@pytest.mark.parametrize("kind", ["nerf", "mesh"])
def test_a_scene_is_lit_from_its_step_on_in_training_only_and_its_albedo_stays(kind: str) -> None:
    shading = Shading(10, diffuse=1.0, textureless=0.0, ambient=0.0)
    plain, lit = scene(kind, None), scene(kind, shading)
    for step, same in ((9, True), (10, False)):
        for one in (plain, lit):
            one.update(step, generator(step))
        pictures = [one.render(views(), generator(7)).rgb for one in (plain, lit)]
        assert torch.equal(*pictures) is same
        assert torch.equal(*(one.render(views()).rgb for one in (plain, lit)))
    assert float((pictures[0] - pictures[1]).min()) > -1e-5  # light takes away, never adds


@pytest.mark.parametrize("kind", ["nerf", "mesh"])
def test_light_without_texture_shapes_the_surface(kind: str) -> None:
    one = scene(kind, Shading(0, diffuse=1.0, textureless=1.0))
    one.update(0, generator())
    seen = one.render(views(), generator())
    (seen.rgb / seen.opacity.clamp(min=1e-3).detach()).square().mean().backward()
    gradients: dict[str, Tensor | None] = {name: value.grad for name, value in one.named_parameters()}
    shape = gradients["distance" if kind == "mesh" else "field.encoding.table"]
    assert shape is not None and bool(shape.any()) and bool(torch.isfinite(shape).all())
    if kind == "mesh":
        assert all(not g.any() for name, g in gradients.items() if name.startswith("field.") and g is not None)


def test_normals_of_a_quadratic_density_are_exact_and_the_border_is_no_surface() -> None:
    points = torch.rand(200, 3, generator=generator(), dtype=torch.float64) * 1.2 - 0.6
    middle = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    found = normals_by_differences(lambda p: 5 - (p - middle).square().sum(-1), points, 0.05)
    assert torch.allclose(found, torch.nn.functional.normalize(points - middle, dim=-1), atol=1e-9)

    def ends(p: Tensor) -> Tensor:
        return (3 - 2 * p[:, 2]) * (p.abs().amax(-1) <= 0.6)

    side = torch.tensor([[0.599, 0.1, 0.2], [-0.6, -0.6, 0.599]], dtype=torch.float64)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(2, 3)
    assert torch.allclose(normals_by_differences(ends, side, 0.01, 0.6), up)


def test_impossible_shares_are_refused() -> None:
    for changes in ({"diffuse": 1.5}, {"ambient": -0.1}, {"distance": (0.0, 1.0)}, {"distance": (2.0, 1.0)}):
        with pytest.raises(ValueError, match="shading: got"):
            Shading(0, **changes)  # type: ignore[arg-type]
