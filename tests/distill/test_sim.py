"""SIM on the closed form: where twin and prior are Gaussians, the scene goes to the prior's mean at an even pace.

Seen to fail: the twin's sign turned, the residual left as long as it was.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior


def test_a_scene_reaches_the_priors_mean_by_steps_of_one_length() -> None:
    """The twin knows the scene as N(x, s^2), so that x0_hat_twin - x0_hat points from the mean to x at every t."""
    means, method = (
        torch.tensor([2.0, -1.0])[:, None, None, None].expand(2, 3, 4, 4),
        replace(METHODS["sim"], scale=1.0),
    )
    prior = GaussianPrior(means, 0.5, names=["red", "blue"])
    x, paces, rate = torch.zeros(1, 3, 4, 4), [], 0.1
    for step in range(60):
        scene = GaussianPrior(x, 0.5, names=["scene"])

        def predict(x_t: torch.Tensor, t: torch.Tensor, roles: object, scene: GaussianPrior = scene) -> dict:
            both = bind(prior, {"cond": prior.embed(["red"])})(x_t, t, ["cond"])
            return both | {"twin": scene.predict(x_t, t, scene.embed(["scene"]).expand(len(x_t)))}

        model = replace(bind(prior, {"cond": prior.embed(["red"])}), predict=predict)
        t = torch.full((1,), 0.3 + 0.4 * (step % 2))
        out = distill(x, model, t, method=method, generator=generator(0, step, "noise"))
        before, x = x, x - rate * x.numel() * out.grad
        paces.append((x - before).square().mean().sqrt().item())
    assert max(paces[:15]) - min(paces[:15]) < 1e-3 and abs(paces[0] - rate) < 1e-3
    assert (x - 2.0).square().mean().sqrt() < 2 * rate
