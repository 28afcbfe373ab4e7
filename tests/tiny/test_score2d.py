"""Figures of pictures without a known view: true pictures get full marks, wrong ones lose them one by one.

Seen to fail: the mask inverted, the mean of the border for its median -> stands out; the shading of one view -> the
albedo; the pairs of a particle with itself counted -> diversity; a shape alone taken for right, saturation with its
sign turned -> full marks.
"""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from threestudio_rf.scenes.camera import sphere_views
from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.figures import score2d
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.truth import subject
from threestudio_rf.tiny.world.views import COLOURS, compose, random_backgrounds, render

FEW = BankCameras(views=200)


def pictures(shape="cube", colour="blue", n=6):
    """Views of a shape all round before random flat backgrounds, and their masks."""
    view = render(SHAPES[shape], sphere_views(n, height=32, width=32))
    named = torch.tensor([COLOURS[colour]]).expand(n, -1)
    return compose(view, named, random_backgrounds(named, torch.Generator().manual_seed(3))), view.mask


def about(shape, colour):
    found = subject(f"a {colour} {shape}")
    assert found is not None
    return found


def judge(answers):
    """A judge with these (shape, colour) answers."""

    def classify(images):
        shapes = torch.tensor([list(SHAPES).index(shape) for shape, _ in answers])
        colours = torch.tensor([list(COLOURS).index(colour) for _, colour in answers])
        assert len(images) == len(answers)
        one_hot = torch.nn.functional.one_hot
        return one_hot(shapes, len(SHAPES)).float(), one_hot(colours, len(COLOURS)).float(), torch.zeros(len(images), 4)

    return classify


def test_what_stands_out_is_the_object_even_where_it_touches_the_border():
    images, mask = pictures()
    seen = score2d.standing_out(images)
    assert ((seen > 0.5) == (mask > 0.3)).float().mean() > 0.97
    touching = images.clone()
    touching[:, :, :14] = torch.tensor(COLOURS["blue"])[:, None, None]
    seen = score2d.standing_out(touching)
    assert seen[:, :, :14].mean() == 1 and seen[:, :, 20:, :2].mean() == 0
    assert score2d.standing_out(torch.full((1, 3, 8, 8), 0.4)).sum() == 0


@pytest.mark.parametrize(("shape", "colour"), [("cube", "blue"), ("mushroom", "red"), ("table", "white")])
def test_the_albedo_of_true_pictures_is_the_named_colour_whatever_view_and_background(shape, colour):
    images, _ = pictures(shape, colour)
    found = score2d.found_albedo(images, about(shape, colour)).found
    assert found.shape == (6, 3)
    assert (found.mean(0) - torch.tensor(COLOURS[colour])).abs().max() < 0.06
    assert len(score2d.found_albedo(torch.full((2, 3, 32, 32), 0.5), about(shape, colour)).found) == 0


def test_diversity_is_the_mean_distance_of_all_pairs():
    levels = torch.tensor([0.0, 0.2, 0.9])
    flat = levels[:, None, None, None].expand(3, 3, 4, 4)
    expected = sum(abs(a - b) for a, b in combinations(levels.tolist(), 2)) / 3
    assert score2d.diversity(flat) == pytest.approx(expected)
    assert score2d.diversity(flat[:1]) is None and score2d.diversity(flat[[1, 1]]) == 0
    noise = torch.randn(6, 4, 50, 50, generator=torch.Generator().manual_seed(0))
    assert score2d.diversity(noise) == pytest.approx(2**0.5, abs=0.01)
    assert score2d.diversity(3 * noise) == pytest.approx(3 * 2**0.5, abs=0.03)


def test_true_pictures_get_full_marks_and_wrong_colours_show_in_their_own_figures():
    images, _ = pictures(n=4)
    answers = [("cube", "blue"), ("cube", "red"), ("ball", "blue"), ("cube", "blue")]

    def marks(seen):
        return score2d.score_pictures(seen, 2 * seen, subject=about("cube", "blue"), judge=judge(answers), cameras=FEW)

    right, grey = marks(images), marks(images.mean(1, keepdim=True).expand(-1, 3, -1, -1))
    assert (
        right["recognised"] == 0.5
        and right["nearest_view_iou"] > 0.8
        and right["colour_error"] < 6
        and abs(right["saturation"]) < 6
    )
    assert right["diversity_latent"] == pytest.approx(2 * right["diversity"], rel=1e-5)
    assert grey["colour_error"] > 50 and grey["saturation"] < -50
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    mask = score2d.standing_out(pictures("cube", "red", 4)[0])
    strong = score2d.score_pictures(
        mask * red + (1 - mask) * 0.5, images, subject=about("cube", "red"), judge=judge(answers), cameras=FEW
    )
    assert strong["saturation"] > 10
    empty = marks(torch.full((4, 3, 32, 32), 0.5))
    assert empty["colour_error"] is None and empty["saturation"] is None and empty["diversity"] == 0
    assert empty["nearest_view_iou"] == 0
    pair = score2d.score_pictures(
        images, images, subject=subject("a red cube on a blue ball"), judge=judge(answers), cameras=FEW
    )
    assert pair["recognised"] is None and pair["nearest_view_iou"] < 0.9


def test_a_stained_background_does_not_count_as_the_object():
    images, mask = pictures()
    draw = torch.Generator().manual_seed(0)
    stains = 0.5 * torch.rand(images.shape, generator=draw) * (mask == 0)
    seen = score2d.standing_out(images * (1 - 0.5 * (mask == 0).float()) + stains)
    assert seen[(mask == 0)].mean() < 0.35 < seen[mask > 0.9].mean()


def test_the_outline_that_an_edit_leaves_is_measured_where_the_old_object_was_and_no_new_one_is():
    before, raw = (torch.full((2, 3, 32, 32), 0.5) for _ in range(2))
    before[:, 0, 8:24, 8:24] = 1.0
    raw[:, 2, 12:16, 12:16] = 1.0
    ring = raw.clone()
    ring[1, 0, 8, 8:24] += 0.4
    found = score2d.outline_left(before, raw, ring)
    assert found[0] == 0 and 0.02 < found[1] < 0.1
    assert score2d.outline_left(before, before, before).isnan().all(), "an object that stays hides its outline"
