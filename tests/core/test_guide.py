"""Guidance by weights.

Oracle: diffusers' ClassifierFreeGuidance with and without its rescale. It fails when `cfg` starts from cond
(cond + s (cond - uncond)), when its two weights are exchanged, when the deviation of `rescale` is taken over the whole
batch, and when `share` is counted from the other end.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor

from threestudio_rf.core.convert import KINDS, Kind, join, split
from threestudio_rf.core.guide import cfg, combine, perp, perp_neg, rescale
from threestudio_rf.core.level import rectified_flow

DOUBLE = torch.float64


def predictions(count: int = 2) -> list[Tensor]:
    """Each (3, 2, 4, 5): the batch differs from the width."""
    return list(torch.randn(count, 3, 2, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))


def dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1)


@pytest.mark.parametrize("s", [0.5, 7.5, 100.0])
def test_guidance_is_that_of_diffusers(s: float) -> None:
    cond, uncond = predictions()
    theirs = ClassifierFreeGuidance(guidance_scale=s).forward(cond, uncond).pred
    assert torch.allclose(combine({"cond": cond, "uncond": uncond}, cfg(s)), theirs, atol=1e-12)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescaled_guidance_is_that_of_diffusers(share: float) -> None:
    cond, uncond = predictions()
    cond[1] *= 3
    theirs = ClassifierFreeGuidance(guidance_scale=7.5, guidance_rescale=share).forward(cond, uncond).pred
    ours = rescale(combine({"cond": cond, "uncond": uncond}, cfg(7.5)), cond, share=share)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_scale_one_is_the_condition_and_zero_is_none_each_with_one_call() -> None:
    assert cfg(1) == {"cond": 1.0} and cfg(0) == {"uncond": 1.0}
    assert cfg(7.5) == {"cond": 7.5, "uncond": -6.5}


def test_the_weights_of_guidance_sum_to_one() -> None:
    for s in (-7.5, 0.0, 0.3, 1.0, 100.0):
        assert sum(cfg(s).values()) == pytest.approx(1, abs=1e-12)


def test_a_weight_may_differ_per_sample() -> None:
    cond, uncond = predictions()
    s = torch.tensor([0.0, 1.0, 5.0])
    mixed = combine({"cond": cond, "uncond": uncond}, {"cond": s, "uncond": 1 - s})
    for i in range(3):
        alone = combine({"cond": cond[i : i + 1], "uncond": uncond[i : i + 1]}, cfg(s[i].item()))
        assert torch.allclose(mixed[i : i + 1], alone, atol=1e-12)
    with pytest.raises(ValueError, match="one per sample"):
        combine({"cond": cond}, {"cond": torch.ones(5)})


def test_roles_without_a_weight_are_ignored_and_weights_without_a_role_raise() -> None:
    cond, uncond = predictions()
    assert torch.equal(combine({"cond": cond, "uncond": uncond}, {"cond": 1.0}), cond)
    with pytest.raises(ValueError, match=r"got predictions for \['cond'\], expected \['uncond'\]"):
        combine({"cond": cond}, cfg(7.5))
    with pytest.raises(ValueError, match="at least one weight"):
        combine({"cond": cond}, {})


def test_the_residual_of_sds_is_a_reconstruction_and_a_classifier_part() -> None:
    cond, uncond, eps = predictions(3)
    residual = combine({"cond": cond, "uncond": uncond}, cfg(7.5)) - eps
    classifier = combine({"cond": cond, "uncond": uncond}, {"cond": 1.0, "uncond": -1.0})
    assert torch.allclose(residual, (uncond - eps) + 7.5 * classifier, atol=1e-12)


def test_a_perpendicular_part_is_perpendicular_per_sample() -> None:
    x, y = predictions()
    assert torch.allclose(dot(perp(x, y), y), torch.zeros(3, dtype=DOUBLE), atol=1e-12)
    assert torch.allclose(perp(x + 3 * y, y), perp(x, y), atol=1e-12)
    assert torch.equal(perp(x, torch.zeros_like(x)), x)


def test_perp_neg_leaves_the_component_along_the_prompt_alone() -> None:
    cond, uncond, negative, other = predictions(4)
    weights = [-2.0, torch.tensor([-1.0, 0.0, -0.5], dtype=DOUBLE)]
    guided = perp_neg(cond, uncond, [negative, other], weights=weights, scale=7.5)
    plain = combine({"cond": cond, "uncond": uncond}, cfg(7.5))
    assert torch.allclose(dot(guided - plain, cond - uncond), torch.zeros(3, dtype=DOUBLE), atol=1e-10)
    assert bool((dot(guided - plain, negative - uncond) < 0).all()), "a negative weight pushes away"


def test_perp_neg_without_weight_is_plain_guidance() -> None:
    cond, uncond, negative = predictions(3)
    plain = combine({"cond": cond, "uncond": uncond}, cfg(7.5))
    assert torch.allclose(perp_neg(cond, uncond, [negative], weights=[0.0], scale=7.5), plain, atol=1e-12)
    assert torch.allclose(perp_neg(cond, uncond, [], weights=[], scale=7.5), plain, atol=1e-12)
    with pytest.raises(ValueError, match="got 0 weights"):
        perp_neg(cond, uncond, [negative], weights=[], scale=7.5)


@pytest.mark.parametrize("kind", KINDS)
def test_perp_neg_is_the_same_in_every_parametrization(kind: Kind) -> None:
    x_t, cond, uncond, negative = predictions(4)
    level = rectified_flow(torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE))

    def guide(space: Kind) -> Tensor:
        p = [join(space, *split("flow", u, x_t, level), level) for u in (cond, uncond, negative)]
        guided = perp_neg(p[0], p[1], [p[2]], weights=[-1.5], scale=7.5)
        return join("flow", *split(space, guided, x_t, level), level)

    assert torch.allclose(guide(kind), guide("flow"), atol=1e-10)


def test_rescale_reaches_the_deviation_of_the_condition() -> None:
    cond, guided = predictions()
    guided = 9 * guided
    assert torch.equal(rescale(guided, cond, share=0.0), guided)
    full = rescale(guided, cond, share=1.0)
    assert torch.allclose(full.flatten(1).std(1), cond.flatten(1).std(1), atol=1e-12)
    with pytest.raises(ValueError, match="share"):
        rescale(guided, cond, share=1.5)
