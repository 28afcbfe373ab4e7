"""View words and Perp-Neg. Perp-Neg's numbers are threestudio's, worked out by hand.

Mutations tried, each seen to fail: order of the rules reversed; azimuth not wrapped; r and 1 - r exchanged in front;
the constants of front and side exchanged behind; the view words cut instead of the prompt; sign of the weights; a curve
of the front used behind.
"""

import math
import warnings

import pytest
import torch

from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.views import (
    OCTANT_WORDS,
    VIEWS,
    Curves,
    mix,
    octant_index,
    perp_neg_weights,
    unreachable_views,
    view_index,
    view_prompts,
)


def names(azimuth, elevation=0.0, **options):
    azimuth = torch.tensor(azimuth, dtype=torch.float32)
    return [VIEWS[i] for i in view_index(azimuth, torch.full_like(azimuth, elevation), **options)]


def test_views_follow_the_angles_and_azimuth_is_periodic():
    turns = [0.0, 44.0, 46.0, 90.0, 134.0, 136.0, 180.0, -180.0, -44.0, -90.0, 359.0, 270.0, 540.0]
    wanted = [
        "front",
        "front",
        "side",
        "side",
        "side",
        "back",
        "back",
        "back",
        "front",
        "side",
        "front",
        "side",
        "back",
    ]
    assert names(turns) == wanted
    assert names([29.0, 31.0, 151.0, 149.0], front=30.0, back=30.0) == ["front", "side", "back", "side"]


def test_the_later_rule_wins():
    assert names([0.0, 90.0, 180.0], 61.0) == ["overhead"] * 3
    assert names([0.0], 60.0) == ["front"]
    assert names([0.0, 90.0, 180.0], front=180.0, back=100.0) == ["front", "back", "back"]


def test_prompts_come_in_the_order_of_the_views_with_pattern_and_overrides():
    assert view_prompts("a cat") == [f"a cat, {view} view" for view in VIEWS]
    changed = view_prompts("a cat", pattern="{view} view of {prompt}", overrides={"back": "its tail"})
    assert changed == ["side view of a cat", "front view of a cat", "its tail", "overhead view of a cat"]
    assert view_prompts("a {view} of {x}, ")[0] == "a {view} of {x}, , side view"
    with pytest.raises(ValueError, match="left"):
        view_prompts("a cat", overrides={"left": "?"})
    with pytest.raises(ValueError, match="prompt"):
        view_prompts("a cat", pattern="{view} view")


def test_a_long_prompt_is_cut_and_the_view_words_stay():
    def fits(text):
        return len(text.replace(",", " ,").split()) <= 8

    with pytest.warns(UserWarning, match="'with eyes'") as caught:
        prompts = view_prompts("one two three four five, with eyes", fits=fits)
    assert len(caught) == 1
    assert prompts == [f"one two three four five, {view} view" for view in VIEWS]


def test_a_prompt_that_fits_is_left_alone_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert view_prompts("a cat, ", fits=lambda text: True)[1] == "a cat, , front view"


def test_unreachable_views_are_found():
    assert unreachable_views((-180, 180), (-10, 45)) == ["overhead"]
    assert unreachable_views((-180, 180), (-10, 70)) == []
    assert unreachable_views((-30, 30), (0, 45)) == ["side", "back", "overhead"]
    assert unreachable_views((150, 210), (0, 45)) == ["side", "front", "overhead"]
    assert unreachable_views((0, 360), (65, 80)) == ["side", "front", "back"]


@pytest.mark.parametrize(
    ("azimuth", "positive", "front", "side"),
    [
        (0.0, {"front": 1.0}, 4 * math.exp(-0.5) - 2.426, 4 - 2.426),
        (30.0, {"front": 2 / 3, "side": 1 / 3}, 4 * math.exp(-1 / 3) - 2.426, 4 * math.exp(-1 / 6) - 2.426),
        (-30.0, {"front": 2 / 3, "side": 1 / 3}, 4 * math.exp(-1 / 3) - 2.426, 4 * math.exp(-1 / 6) - 2.426),
        (90.0, {"side": 1.0}, math.exp(-0.5) + 0.967, math.exp(-0.5) - 0.606),
        (135.0, {"side": 0.5, "back": 0.5}, math.exp(-0.25) + 0.967, math.exp(-0.25) - 0.606),
        (180.0, {"back": 1.0}, 1 + 0.967, 1 - 0.606),
    ],
)
def test_perp_neg_weights_are_threestudios(azimuth, positive, front, side):
    out = perp_neg_weights(torch.tensor([azimuth]), torch.tensor([10.0]))
    shares = {VIEWS[i]: share for i, share in enumerate(out.positive[0].tolist()) if share > 1e-6}
    assert shares == pytest.approx(positive, abs=1e-5)
    weights = {VIEWS[i]: w for i, w in zip(out.negative[0].tolist(), out.weights[0].tolist(), strict=True)}
    assert weights == pytest.approx({"front": -front, "side": -side}, abs=1e-5)


def test_perp_neg_is_off_overhead():
    out = perp_neg_weights(torch.tensor([0.0, 180.0, 20.0]), torch.tensor([70.0, 70.0, 0.0]))
    assert out.positive[:2, VIEWS.index("overhead")].tolist() == [1.0, 1.0]
    assert out.weights[:2].abs().sum() == 0 and out.weights[2].abs().min() > 0
    torch.testing.assert_close(out.positive.sum(1), torch.ones(3))


def test_each_curve_weighs_its_view_on_its_side():
    curves = Curves(f_fs=(1.0, 0.0, 0.0), f_sf=(2.0, 0.0, 0.0), f_fsb=(3.0, 0.0, 0.0), f_sb=(4.0, 0.0, 0.0))
    out = perp_neg_weights(torch.tensor([10.0, 170.0]), torch.zeros(2), curves=curves)
    views, weights = [[VIEWS[i] for i in row] for row in out.negative.tolist()], (-out.weights).tolist()
    found = [dict(zip(*row, strict=True)) for row in zip(views, weights, strict=True)]
    assert found == [{"front": 1.0, "side": 2.0}, {"front": 3.0, "side": 4.0}]


def test_conditions_are_mixed_linearly():
    views = Condition({"prompt": torch.randn(4, 3, 5), "pooled": torch.randn(4, 6)})
    shares = torch.tensor([[0.25, 0.75, 0, 0], [0, 0, 0, 1.0], [0.5, 0, 0.5, 0]])
    mixed = mix(views, shares)
    torch.testing.assert_close(
        mixed.tensors["prompt"][0], 0.25 * views.tensors["prompt"][0] + 0.75 * views.tensors["prompt"][1]
    )
    assert torch.equal(mixed.tensors["pooled"][1], views.tensors["pooled"][3])
    with pytest.raises(ValueError, match="expected"):
        mix(views, shares[:, :3])


def test_octants_are_the_nearest_multiple_of_45_degrees_as_the_one_in_front_sees_them():
    turns = torch.tensor([0.0, 22.0, 23.0, 90.0, 135.0, 180.0, -90.0, -30.0, 359.0, -22.0])
    words = [OCTANT_WORDS[i] for i in octant_index(turns, torch.zeros(10))]
    wanted = ["front", "front", "front right", "right", "back right", "back", "left", "front left", "front", "front"]
    assert words == [f"low {octant}" for octant in wanted]
    heights = [OCTANT_WORDS[i] for i in octant_index(torch.zeros(4), torch.tensor([-10.0, 15.0, 16.0, 46.0]))]
    assert heights == ["low front", "low front", "raised front", "high front"]
    assert (
        len(set(OCTANT_WORDS)) == 24
        and view_prompts("a cat", views=OCTANT_WORDS)[4] == "a cat, raised front right view"
    )
