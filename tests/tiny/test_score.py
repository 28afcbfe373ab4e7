"""The figures call the truth perfect and see known faults by the known amount; skimage is the oracle of CIE76.

Mutations seen to fail: opacity above 0.2 and a mean over pixels instead of views (each view), no search of the shift
or of the scale (moved, fitted), squared distances (plates), one direction only (brute force), r without its root,
triangles drawn without their area, bounding box of unused vertices (uniform), XYZ matrix transposed and the linear
branch of sRGB dropped (skimage), no division by shading and outline kept (albedo), overhead views counted and the
overhead word allowed (janus), "or" for "and" (shape and colour), the backdrop not taken away (before grey).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from skimage import color
from torch import Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.tiny.world.figures import colour, score
from threestudio_rf.tiny.world.figures.fit import Fit, placed, true_volume
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.truth import TrueMesh, subject, true_mesh
from threestudio_rf.tiny.world.views import COLOURS, compose, render, view_of


class Triangles(NamedTuple):
    vertices: Tensor
    faces: Tensor


def views(n: int = 6, size: int = 32) -> Camera:
    return sphere_views(n, height=size, width=size)


def box(x: float, y: float, z: float) -> Triangles:
    import trimesh

    solid = trimesh.creation.box((x, y, z))
    return Triangles(torch.tensor(solid.vertices.copy()), torch.tensor(solid.faces.copy()))


def plates(gap: float) -> Triangles:
    """Two unit squares at z = -gap / 2 and gap / 2."""
    square = torch.tensor([[0.0, 0, -gap / 2], [1, 0, -gap / 2], [1, 1, -gap / 2], [0, 1, -gap / 2]])
    corners = torch.cat((square, square + torch.tensor([0, 0, gap])))
    return Triangles(corners, torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]))


@pytest.mark.parametrize("name", ["mushroom", "chair"])
def test_the_true_silhouette_scores_one_wherever_it_was_moved(name: str):
    camera, shape = views(), SHAPES[name]
    moved = render(shape, camera, scale=1.2, shift=-0.15, turn=30).mask
    assert score.silhouette_iou(moved, shape, camera, Fit(0.0, 1.2, -0.15, 30.0)) == 1
    assert score.silhouette_iou(moved, shape, camera, Fit(0.0)) < 0.8
    turned = Camera(camera.azimuth - 30, camera.elevation, camera.distance, camera.fovy, 32, 32)
    assert torch.equal(render(shape, camera, turn=30).mask, render(shape, turned).mask)


def test_a_smaller_ball_overlaps_by_the_square_of_its_size_until_it_is_fitted():
    camera, ball = views(4, 64), SHAPES["ball"]
    small = render(ball, camera, scale=0.8).mask
    apparent = 0.8**2 * (1.8**2 - 0.42**2) / (1.8**2 - (0.8 * 0.42) ** 2)
    assert score.mean_iou(small > 0.5, render(ball, camera).mask > 0.5) == pytest.approx(apparent, abs=0.02)
    assert score.silhouette_iou(small, ball, camera, Fit(0.0, 0.8)) == 1


def test_each_view_counts_the_same_and_one_half_is_the_border():
    mask = torch.zeros(3, 1, 4, 10)
    mask[0, :, :, :8], mask[1, 0, 0, 0] = 1, 1
    opacity = torch.zeros_like(mask)
    opacity[0, :, :, :4], opacity[0, :, :, 4:], opacity[1, 0, 0, :4] = 0.51, 0.49, 0.9
    assert score.mean_iou(opacity > 0.5, mask > 0.5) == pytest.approx((1 / 2 + 1 / 4 + 1) / 3)
    assert score.mean_iou(torch.zeros_like(mask) > 0.5, mask > 0.5) == pytest.approx(1 / 3)


def test_chamfer_of_parallel_plates_is_half_the_difference_of_their_gaps():
    found = score.chamfer(plates(0.1), plates(0.34), 4000, generator=generator(0, 0, "chamfer"))
    assert found == pytest.approx(0.12, abs=0.002)
    twice = [Triangles(2 * mesh.vertices, mesh.faces) for mesh in (plates(0.1), plates(0.34))]
    assert score.chamfer(*twice, 4000, generator=generator(0, 0, "chamfer")) == pytest.approx(found, rel=1e-6)


def test_chamfer_agrees_with_brute_force():
    meshes = box(1.0, 0.7, 0.4), box(0.9, 1.0, 0.6)
    found = score.chamfer(*meshes, 300, generator=generator(0, 0, "a"))
    draw = generator(0, 0, "a")
    a, b = (score.surface_points(mesh, 300, draw) for mesh in meshes)
    gap = torch.cdist(a, b)
    assert found == pytest.approx(float(gap.amin(0).mean() + gap.amin(1).mean()) / 2)
    assert abs(float(gap.amin(0).mean() - gap.amin(1).mean())) > 1e-3


def test_chamfer_of_a_mesh_with_itself_is_the_floor_and_it_is_not_searched_for_where_it_stands():
    cube = box(1.0, 1.0, 1.0)
    moved = Triangles(cube.vertices + torch.tensor([5.0, 0.0, 0.0]), cube.faces)
    here = score.chamfer(cube, cube, 5000, generator=generator(0, 0, "a"))
    assert here == pytest.approx(0.5 * (6 / 5000) ** 0.5, rel=0.1)
    assert score.chamfer(moved, cube, 5000, generator=generator(0, 0, "a")) > 4


def test_the_true_mesh_stands_as_the_fit_says():
    mesh = TrueMesh(torch.tensor([[0.2, 0.0, 0.1]]), torch.zeros(0, 3, dtype=torch.long))
    stood = score.standing(mesh, Fit(0.0, 1.5, -0.2, 90.0)).vertices[0]
    assert torch.allclose(stood.float(), torch.tensor([0.0, 0.3, -0.05]), atol=1e-6)
    assert torch.allclose(placed(stood, Fit(0.0, 1.5, -0.2, 90.0)).float(), mesh.vertices[0], atol=1e-6)


def test_points_are_uniform_over_the_used_surface():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [-3, 0, 0], [9, 9, 9]])
    mesh = Triangles(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    points = score.surface_points(mesh, 40_000, generator(0, 0, "points"))
    assert torch.allclose(points.amin(0), torch.tensor([-3.0, 0, 0]).double(), atol=0.05)
    assert float((points[:, 0] > 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    right = points[points[:, 0] > 0].mean(0)
    assert torch.allclose(right, torch.tensor([1 / 3, 1 / 3, 0]).double(), atol=0.01)
    with pytest.raises(ValueError, match="with area"):
        score.surface_points(Triangles(vertices, torch.tensor([[0, 1, 0]])), 5, generator(0, 0, "points"))


def test_lab_is_that_of_skimage():
    rgb = torch.rand(7, 5, 3, generator=generator(0, 0, "lab"), dtype=torch.float64)
    rgb[0, 0], rgb[0, 1], rgb[0, 2] = 0.0, 0.03, 0.0405
    assert np.allclose(colour.lab(rgb).numpy(), color.rgb2lab(rgb.numpy()), atol=2e-3)
    a, b = (torch.tensor(COLOURS[name]) for name in ("red", "orange"))
    expected = color.deltaE_cie76(color.rgb2lab(a.numpy()), color.rgb2lab(b.numpy()))
    assert float((colour.lab(a) - colour.lab(b)).norm()) == pytest.approx(float(expected), abs=1e-2)


@pytest.mark.parametrize("name", ["table", "snowman"])
def test_the_true_albedo_is_found_before_any_background_and_its_changes_are_seen(name: str):
    camera = views(4, 64)
    truth, red = render(SHAPES[name], camera), torch.tensor([COLOURS["red"]])
    for background in ([[0.0, 0.0, 0.0]], [[0.2, 1.0, 0.9]]):
        image = compose(truth, red, torch.tensor(background))
        seen = colour.albedos(image, truth.mask, truth, red[0])
        assert seen.error is not None and seen.error < 1.5
        assert seen.found.shape == (4, 3) and torch.allclose(seen.found, red.expand(4, 3), atol=0.03)
        assert torch.allclose(seen.true, red.expand(4, 3))
    dark, vivid = 0.6 * red, red * torch.tensor([1.1, 0.0, 0.0])
    for other in (dark, vivid):
        image = compose(truth, other, torch.zeros(1, 3))
        expected = float((colour.lab(other) - colour.lab(red)).norm())
        assert colour.albedos(image, truth.mask, truth, red[0]).error == pytest.approx(expected, abs=1.5)
    assert colour.albedos(image, torch.zeros_like(truth.mask), truth, red[0]).error is None


def test_parts_in_colours_of_their_own_count_with_the_area_that_they_show():
    camera, car = views(4, 64), SHAPES["car"]
    truth, palette = render(car, camera), car.palette(torch.tensor([COLOURS["red"]]))
    image = compose(truth, palette, torch.full((1, 3), 0.5))
    seen = colour.albedos(image, truth.mask, truth, palette[0])
    assert seen.error < 2.5 and abs(seen.saturation) < 2.5
    assert (seen.true - torch.tensor(COLOURS["red"])).abs().max() > 0.1
    plain = compose(truth, torch.tensor([COLOURS["red"]]), torch.full((1, 3), 0.5))
    assert colour.albedos(plain, truth.mask, truth, palette[0]).error > 10


def test_a_picture_is_judged_right_only_when_shape_and_colour_are():
    shape, colour = torch.eye(5)[[2, 2, 1, 0]], torch.eye(3)[[1, 0, 1, 2]]
    assert score.judged_accuracy(shape, colour, 2, 1) == 0.25


def test_janus_is_the_share_of_wrong_words_among_views_that_have_one():
    azimuth, elevation = torch.tensor([0.0, 30, 90, -170, 180, 0]), torch.tensor([0.0, 10, 20, 30, 0, 80])
    logits = torch.nn.functional.one_hot(view_of(azimuth, elevation), 4).float()
    assert score.janus(logits, azimuth, elevation, front=True) == 0
    logits[:, 3] = 9
    assert score.janus(logits, azimuth, elevation, front=True) == 0
    logits[3] = torch.tensor([0.0, 5.0, 1.0, 0.0])
    assert score.janus(logits, azimuth, elevation, front=True) == pytest.approx(1 / 5)
    assert score.janus(logits, azimuth, elevation, front=False) is None
    assert score.janus(logits[5:], azimuth[5:], elevation[5:], front=True) is None


def test_a_true_scene_gets_full_marks_and_a_false_one_does_not():
    camera, mesh = views(5), true_mesh(SHAPES["chair"], resolution=64)
    truth = view_of(camera.azimuth, camera.elevation)

    def says_red_chair(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert images.shape == (5, 3, 32, 32)
        rows = [list(SHAPES).index("chair")], [list(COLOURS).index("red")]
        return *(torch.eye(n)[row].expand(5, -1) for n, row in zip((12, 10), rows, strict=True)), torch.eye(4)[truth]

    def marks(scene_shape: str, name: str) -> dict[str, float | None]:
        about = subject(f"a {name} chair")
        assert about is not None
        return score.score_scene(
            score.TrueScene(SHAPES[scene_shape], torch.tensor(COLOURS[name])),
            true_volume(SHAPES[scene_shape], 0.62),
            mesh if scene_shape == "chair" else None,
            subject=about,
            judge=says_red_chair,
            generator=generator(0, 0, "score"),
            camera=camera,
            batch=2,
        )

    right, wrong = marks("chair", "red"), marks("ball", "blue")
    keys = ["volume_iou", "silhouette_iou", "chamfer", "colour_error", "saturation", "janus", "recognised"]
    assert list(right) == keys and right["volume_iou"] == 1 and wrong["volume_iou"] < 0.4
    assert abs(right["saturation"]) < 2 < abs(wrong["saturation"])
    assert right["recognised"] == 1 and right["silhouette_iou"] == 1 and right["janus"] == 0
    assert right["chamfer"] < 0.01 and right["colour_error"] < 1.5
    assert wrong["recognised"] == 0 and wrong["silhouette_iou"] < 0.7 and wrong["chamfer"] is None


def test_the_judge_sees_the_object_before_grey_whatever_it_stood_before():
    about, camera = subject("a white house"), score.held_out()
    assert about is not None

    def seen_before(rgb: tuple[float, float, float]) -> tuple[Tensor, dict[str, float | None]]:
        part = score.TrueScene(about.solid, about.palette, rgb).render(camera)
        shown = score.before_grey(part)
        return shown, score.recognised(about, load_judge(weights_folder())(shown), camera)

    grey, light = seen_before(score.GREY), seen_before((0.7, 0.7, 0.7))
    assert torch.allclose(grey[0], light[0], rtol=0, atol=1e-6) and grey[1] == light[1]
    assert grey[1]["janus"] is not None and grey[1]["janus"] < 0.05
    untold = score.TrueScene(about.solid, about.palette, (0.9, 0.9, 0.9)).render(camera)._replace(backdrop=None)
    assert score.before_grey(untold) is untold.rgb


def test_a_judge_has_no_say_about_a_shape_that_it_does_not_know():
    camera, verdict = views(5), (torch.rand(5, 12), torch.rand(5, 10), torch.rand(5, 4))
    for prompt in ("a red duck", "a red ball on a blue cube"):
        about = subject(prompt)
        assert about is not None
        assert score.recognised(about, verdict, camera) == {"janus": None, "recognised": None}


def test_the_default_views_are_24_held_out_ones():
    assert len(score.held_out()) == 24 and (score.held_out().height, score.held_out().width) == (64, 64)
