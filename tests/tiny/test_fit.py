"""The lead figure is 1 for the truth wherever it stands, and falls when the shape fails.

Seen to fail: the turn not searched, or searched for shapes with a front; the shift's sign in `placed`; cavities kept;
the union taken for the larger of the two.
"""

from __future__ import annotations

import pytest
import torch

from threestudio_rf.tiny.world.figures.fit import (
    Fit,
    Volume,
    borders,
    filled,
    fit_volume,
    overlap,
    placed,
    rating,
    true_volume,
)
from threestudio_rf.tiny.world.shapes import SHAPES

RADIUS = 0.7


def moved(name: str, fit: Fit, resolution: int = 48) -> Volume:
    """The volume of a shape that stands as `fit` says."""
    volume = Volume(torch.zeros((resolution,) * 3, dtype=torch.bool), torch.linspace(-RADIUS, RADIUS, resolution))
    points = placed(volume.points().reshape(-1, 3), fit)
    return volume._replace(inside=(SHAPES[name].sdf(points) < 0).reshape(volume.inside.shape))


@pytest.mark.parametrize("name", SHAPES)
def test_the_truth_has_the_full_overlap_with_itself(name: str) -> None:
    assert fit_volume(true_volume(SHAPES[name], RADIUS, 32), SHAPES[name]).iou == 1


@pytest.mark.parametrize(("name", "turn"), [("mushroom", 0.0), ("chair", 0.0), ("table", 40.0), ("star", -65.0)])
def test_scale_shift_and_for_shapes_without_a_front_turn_are_found(name: str, turn: float) -> None:
    volume = moved(name, Fit(0.0, 1.15, -0.08, turn))
    found = fit_volume(volume, SHAPES[name])
    assert found.iou > 0.9 and found.scale == pytest.approx(1.15, abs=0.03)
    assert found.shift == pytest.approx(-0.08, abs=0.02)
    assert overlap(volume, SHAPES[name], Fit(0.0)) < found.iou - 0.1


def test_a_front_has_to_be_in_front() -> None:
    assert fit_volume(moved("chair", Fit(0.0, turn=180.0)), SHAPES["chair"]).iou < 0.75
    assert fit_volume(moved("house", Fit(0.0, turn=90.0)), SHAPES["house"]).iou < 0.9
    assert fit_volume(moved("cube", Fit(0.0, turn=30.0)), SHAPES["cube"]).iou > 0.95


def test_another_shape_is_poor_and_a_melted_one_is_not_good() -> None:
    assert rating(fit_volume(moved("ball", Fit(0.0)), SHAPES["chair"]).iou) == "poor"
    chair = moved("chair", Fit(0.0))
    points = chair.points()
    funnel = chair.inside | (
        (points[..., 2] < -0.05) & (points[..., 2] > -0.45) & (points[..., :2].norm(dim=-1) < 0.26)
    )
    assert fit_volume(chair._replace(inside=funnel), SHAPES["chair"]).iou < 0.7
    assert [rating(iou) for iou in (0.9, 0.85, 0.8, 0.7, 0.69, 0.0)] == ["good", "good", "fair", "fair", "poor", "poor"]


def test_a_hollow_object_counts_as_solid_and_an_empty_one_as_nothing() -> None:
    ball = moved("ball", Fit(0.0))
    core = ball.points().norm(dim=-1) < 0.3
    assert torch.equal(filled(ball.inside & ~core), ball.inside)
    nothing = ball._replace(inside=torch.zeros_like(ball.inside))
    assert fit_volume(nothing, SHAPES["ball"]) == Fit(0.0)


def test_the_sides_that_an_object_touches_are_named() -> None:
    ball = moved("ball", Fit(0.0))
    assert borders(ball) == []
    inside = ball.inside.clone()
    inside[0, 20, 20] = inside[20, 20, -1] = True
    assert borders(ball._replace(inside=inside)) == ["-x", "+z"]
