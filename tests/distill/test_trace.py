"""TraCe on Gaussians: its bridge, and what pulls the scene while the twin is behind.

Seen to fail: the two ends exchanged; the twin's sign turned; the deviation of the bridge for that from its aim.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import join, split
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.distill.noise import bridge_level
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

N, MEAN, STD, NOISE, T = 40_000, 1.5, 0.6, 0.5, 0.3


def test_a_bridge_is_as_far_from_one_end_as_its_mirror_image_from_the_other() -> None:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    here, there = bridge_level(t), bridge_level(1.001 - t)
    torch.testing.assert_close(here.aim, there.start)
    torch.testing.assert_close(here.spread, there.spread)
    torch.testing.assert_close(here.spread**-2, here.deviation**-2 + there.deviation**-2)
    assert (here.aim + here.start - 1).abs().max() < 1e-12 and (here.start.diff() > 0).all()
    assert here.start[0] < 1e-2 and here.start[-1] > 0.99


@pytest.mark.parametrize("behind", [0.0, 0.4])
def test_a_twin_that_knows_the_bridge_holds_the_scene_and_one_that_is_behind_pulls_as_computed(behind: float) -> None:
    """x0_hat of a Gaussian is linear in its noise, so the aim given x_t is Gaussian too, and known. The twin takes the
    scene to be where it was, `behind` further from the mean. Its mistake in the aim is what pulls, on average; the sign
    is that of the estimate's share of the move against the bridge's."""
    prior = GaussianPrior(torch.full((1, 1, 1, 1), MEAN), STD)
    gain = (1 - NOISE) * STD**2 / ((1 - NOISE) ** 2 * STD**2 + NOISE**2)
    level = bridge_level(torch.tensor([T], dtype=torch.float64))
    a, b, spread, far = (x.item() for x in level)
    x, t = torch.full((N, 1, 1, 1), 4.0), torch.full((N,), T)

    def mean_aim(scene: float) -> float:
        return MEAN + gain * (1 - NOISE) * (scene - MEAN)

    slope = a * (gain * NOISE) ** 2 / (a**2 * (gain * NOISE) ** 2 + spread**2)

    def predict(x_t: Tensor, t: Tensor, roles: object) -> dict[str, Tensor]:
        if "twin" not in list(roles):  # type: ignore[call-overload]
            return {"cond": prior.predict(x_t, t, prior.embed([""]).expand(len(x_t)))}
        scene = 4.0 + behind
        aim = mean_aim(scene) + slope * (x_t - a * mean_aim(scene) - b * scene)
        level = prior.schedule(t)
        return {"twin": join("flow", *split("eps", (x_t - aim) / far, x_t, level), level)}

    model = replace(bind(prior, {"cond": prior.embed([""])}), predict=predict)
    method = replace(METHODS["trace"], scale=1.0, trace_t=(NOISE, NOISE))
    out = distill(x, model, t, method=method, generator=generator(0, 0, "noise"))
    pulls = N * out.grad.flatten()
    moved = gain * (1 - NOISE) * behind
    wanted = (moved - slope * (a * moved + b * behind)) / far
    assert abs(pulls.mean() - wanted) < 4 * pulls.std() / N**0.5
    assert (wanted == 0) == (behind == 0)
