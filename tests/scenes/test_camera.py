"""Cameras against explicit geometry.

Seen to fail: `sin_e` negated in `position`; `up` negated in `c2w`; y not flipped in `rays`; aspect ratio dropped; the
field of view not halved; asin left out of the draw on the sphere; the range of the draw shrunk to its middle half;
a shift left out of the position, added to the look instead of its target, or of the wrong one of the three laws.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from threestudio_rf.scenes.camera import Camera, orbit, random_views, sphere_views


def three(height: int = 5, width: int = 7) -> Camera:
    return Camera(
        torch.tensor([-170.0, 20.0, 95.0]),
        torch.tensor([-10.0, 45.0, 80.0]),
        torch.tensor([1.5, 2.0, 3.0]),
        torch.tensor([40.0, 60.0, 25.0]),
        height,
        width,
    )


def test_three_cameras_agree_with_cross_products_taken_one_by_one() -> None:
    camera = three()
    for position, c2w, azimuth, elevation, distance in zip(
        camera.position, camera.c2w, camera.azimuth, camera.elevation, camera.distance, strict=True
    ):
        a, e = math.radians(azimuth), math.radians(elevation)
        expected = distance * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        assert torch.allclose(position, expected, atol=1e-6)
        look = -expected / expected.norm()
        right = torch.linalg.cross(look, torch.tensor([0.0, 0.0, 1.0]))
        right = right / right.norm()
        up = torch.linalg.cross(right, look)
        assert torch.allclose(c2w, torch.stack((right, up, -look), dim=-1), atol=1e-6)


def test_c2w_is_a_rotation_at_the_poles_too() -> None:
    angles = torch.tensor([-90.0, -30.0, 0.0, 89.9, 90.0])
    camera = Camera(torch.full((5,), 33.0), angles, torch.ones(5), torch.full((5,), 40.0), 4, 6)
    assert torch.allclose(camera.c2w @ camera.c2w.mT, torch.eye(3).expand(5, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(camera.c2w), torch.ones(5), atol=1e-6)


def test_the_middle_ray_hits_the_origin_and_all_directions_are_unit() -> None:
    camera = three(height=5, width=7)
    origins, directions = camera.rays()
    assert origins.shape == directions.shape == (3, 5, 7, 3)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(3, 5, 7), atol=1e-6)
    reached = origins[:, 2, 3] + camera.distance[:, None] * directions[:, 2, 3]
    assert reached.abs().max() < 1e-5


def test_row_zero_is_the_top_and_the_last_column_is_right() -> None:
    front = Camera(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.full((1,), 50.0), 4, 6)
    _, directions = front.rays()
    assert (directions[0, 0, :, 2] > 0).all() and (directions[0, -1, :, 2] < 0).all()
    assert (directions[0, :, -1, 1] > 0).all() and (directions[0, :, 0, 1] < 0).all()


def test_a_projected_point_lies_on_the_ray_of_its_pixel() -> None:
    camera = three(height=8, width=12)
    origins, directions = camera.rays()
    for b, (row, column) in enumerate(((1, 10), (6, 0), (3, 7))):
        point = origins[b, row, column] + 1.3 * directions[b, row, column]
        x, y, z = camera.c2w[b].T @ (point - camera.position[b])
        focal = 0.5 * 8 / math.tan(math.radians(float(camera.fovy[b])) / 2)
        assert float(-x / z * focal + 6) == pytest.approx(column + 0.5, abs=1e-3)
        assert float(y / z * focal + 4) == pytest.approx(row + 0.5, abs=1e-3)


@pytest.mark.parametrize("sphere", [0.0, 1.0, 0.5])
def test_elevations_fill_their_whole_range_with_the_stated_law(sphere: float) -> None:
    low, high, n = -10.0, 45.0, 40_000
    generator = torch.Generator().manual_seed(3)
    drawn = random_views(n, generator, elevation=(low, high), sphere=sphere, height=4, width=6).elevation
    assert low <= drawn.min() < low + 0.1 and high - 0.1 < drawn.max() <= high
    edges = torch.linspace(low, high, 12)
    sines = torch.sin(torch.deg2rad(edges))
    on_sphere = (sines - sines[0]) / (sines[-1] - sines[0])
    in_degrees = (edges - low) / (high - low)
    share = torch.histogram(drawn, edges).hist / n
    assert (share - (sphere * on_sphere + (1 - sphere) * in_degrees).diff()).abs().max() < 0.006


def test_half_of_the_elevations_follow_each_law() -> None:
    """At the steep end the two laws differ most, so one coin for both is seen by the mean of the sines."""
    drawn = random_views(40_000, torch.Generator().manual_seed(5), elevation=(-10, 45), height=4, width=6).elevation
    sines = torch.sin(torch.deg2rad(drawn))
    low, high = math.radians(-10), math.radians(45)
    mean_sphere = (math.sin(low) + math.sin(high)) / 2
    mean_degrees = (math.cos(low) - math.cos(high)) / (high - low)
    assert float(sines.mean()) == pytest.approx((mean_sphere + mean_degrees) / 2, abs=0.004)


def test_stratified_azimuths_share_the_circle() -> None:
    camera = random_views(6, torch.Generator().manual_seed(0), height=4, width=5)
    assert ((camera.azimuth + 180) // 60).tolist() == [0, 1, 2, 3, 4, 5]
    free = random_views(3000, torch.Generator().manual_seed(0), stratified=False, height=4, width=5)
    assert free.azimuth.min() < -175 and free.azimuth.max() > 175


def test_the_same_generator_gives_the_same_cameras() -> None:
    a, b = (random_views(3, torch.Generator().manual_seed(9), height=4, width=5) for _ in range(2))
    assert torch.equal(a.position, b.position) and torch.equal(a.fovy, b.fovy)


def test_an_orbit_starts_in_front_and_turns_by_equal_steps() -> None:
    camera = orbit(8, elevation=15, distance=2, fovy=40, height=4, width=5)
    assert camera.azimuth.tolist() == [0, 45, 90, 135, 180, -135, -90, -45]
    assert torch.allclose(camera.position.norm(dim=-1), torch.full((8,), 2.0))


def test_sphere_views_stay_in_their_band_and_are_spread() -> None:
    camera = sphere_views(24, elevation=(-10, 60), height=4, width=5)
    assert camera.elevation.min() > -10 and camera.elevation.max() < 60
    near = torch.cdist(camera.position, camera.position) + 9 * torch.eye(24)
    assert near.min() > 0.4


def test_selecting_and_resizing_keep_the_views() -> None:
    camera = three()
    picked = camera.select([2, 0]).resized(9, 3)
    assert len(picked) == 2 and (picked.height, picked.width) == (9, 3)
    assert torch.equal(picked.position, camera.position[[2, 0]])
    assert len(camera.select(slice(0, 1))) == 1 and len(camera.to("cpu")) == 3


def test_shifted_cameras_are_those_of_threestudios_cross_products() -> None:
    plain = three()
    same = replace(plain, shift=torch.zeros(3, 3, 3))
    assert torch.allclose(same.c2w, plain.c2w, atol=1e-6) and torch.equal(same.position, plain.position)
    shift = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 0.2, 0.02])[:, None]
    camera = replace(plain, shift=shift)
    for i in range(3):
        place, centre = plain.position[i] + shift[i, 0], shift[i, 1]
        look = (centre - place) / (centre - place).norm()
        right = torch.linalg.cross(look, torch.tensor([0.0, 0.0, 1.0]) + shift[i, 2])
        right = right / right.norm()
        up = torch.linalg.cross(right, look)
        assert torch.allclose(camera.c2w[i], torch.stack((right, up, -look), dim=-1), atol=1e-6)
        origins, directions = camera.rays()
        assert torch.allclose(origins[i, 0, 0], place) and torch.allclose(directions[i, 2, 3], look, atol=1e-6)
    assert torch.equal(camera.select([2, 0]).position, camera.position[[2, 0]])
    assert torch.equal(camera.share(1, 3).to("cpu").c2w, camera.c2w[1:2])
    assert torch.equal(camera.resized(9, 3).c2w, camera.c2w)


def test_cameras_stray_by_the_stated_laws_from_where_they_would_be() -> None:
    draws = {"elevation": (-10.0, 45.0), "distance": (1.5, 2.0), "height": 4, "width": 4}
    plain = random_views(4000, torch.Generator().manual_seed(1), **draws)  # type: ignore[arg-type]
    moved = random_views(4000, torch.Generator().manual_seed(1), stray=(0.1, 0.2, 0.02), **draws)  # type: ignore[arg-type]
    assert plain.shift is None and torch.equal(moved.azimuth, plain.azimuth) and torch.equal(moved.fovy, plain.fovy)
    assert moved.shift is not None
    place, centre, up = moved.shift.unbind(1)
    assert 0.099 < place.abs().max() <= 0.1 and abs(place.std().item() - 0.1 / 3**0.5) < 0.001
    assert abs(centre.std().item() - 0.2) < 0.005 and centre.abs().max() > 0.6
    assert abs(up.std().item() - 0.02) < 0.0005 and moved.shift.mean().abs() < 0.003


def test_bad_cameras_are_refused() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match=r"shift must be .1, 3, 3.*got .1, 3."):
        Camera(one, one, one, one, 4, 4, shift=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"must all be \(B,\)"):
        Camera(one, two, one, one, 4, 4)
    with pytest.raises(ValueError, match="at least one view"):
        orbit(0, height=4, width=4)
    with pytest.raises(ValueError, match="fovy range is empty"):
        random_views(1, torch.Generator(), fovy=(50, 40), height=4, width=4)
