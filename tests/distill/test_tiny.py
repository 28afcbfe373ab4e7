"""RFDS and RFDS-Rev on the embedded networks equal the reference's published formulas with its factors, in float64.

The reference's loss is the mean squared error between eps - x0 and the guided velocity, divided by the batch: in 3D
(B = 1) 2 r / M, in 2D (B particles) 2 r / (M B^2). Both sides see the same predictions, which are recorded; on a table
of levels u_hat = eps_hat - x0_hat. Every embedded prior that is there is tried.

Seen to fail: k = 1 for k = 1 - t; the row of flow turned; B left out.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny, weights_folder

THERE = [name for name in EMBEDDED if (weights_folder() / name.replace("_", "-")).is_dir()]
T = torch.tensor([0.12, 0.5, 0.9], dtype=torch.float64)


@pytest.fixture(scope="module", params=THERE)
def prior(request):
    return load_tiny(request.param)


def velocity(prior, x_t, alpha, sigma, p):
    """u_hat by the equation of the prior's kind."""
    if prior.kind == "flow":
        return p
    eps = p if prior.kind == "eps" else sigma * x_t + alpha * p
    return eps - (x_t - sigma * eps) / alpha


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["rfds", "rfds_rev", "rfds_rev_instaflow"])
def test_the_reference_has_two_over_the_batch_times_our_gradient(prior, name, batch):
    conditions = prior.embed(["a red mushroom", ""])
    bound = bind(prior, {"cond": conditions.select([0]), "uncond": conditions.select([1])})
    recorded = []

    def predict(x_t, t, roles):
        found = {role: p.double() for role, p in bound(x_t.float(), t, roles).items()}
        recorded.append((x_t, found))
        return found

    t = T[-batch:]
    x0 = 0.5 * torch.randn(batch, *prior.latent_shape, generator=generator(0, 0, "x"), dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=generator(0, 0, "noise")).double()
    out = distill(
        x0, Model(predict, prior.kind, prior.schedule), t, method=METHODS[name], generator=generator(0, 0, "noise")
    )
    alpha, sigma = (value[:, None, None, None] for value in prior.schedule(t))
    if name != "rfds":
        x_t, p = recorded[0]
        torch.testing.assert_close(x_t, alpha * x0 + sigma * eps, rtol=1e-12, atol=1e-12)
        u = velocity(prior, x_t, alpha, sigma, p["cond"])
        eps = x0 + u if name == "rfds_rev_instaflow" else u + (x_t - sigma * u) / (alpha + sigma)
    x_t, p = recorded[-1]
    torch.testing.assert_close(x_t, alpha * x0 + sigma * eps, rtol=1e-10, atol=1e-10)
    cond, uncond = (velocity(prior, x_t, alpha, sigma, p[role]) for role in ("cond", "uncond"))
    scale = {"rfds_rev_instaflow": 50.0}.get(name, 100.0)
    variable = x0.clone().requires_grad_()
    (F.mse_loss(eps - variable, uncond + scale * (cond - uncond)) / batch).backward()
    assert variable.grad.abs().max() > 1e-4
    torch.testing.assert_close(2 / batch * out.grad, variable.grad, rtol=1e-9, atol=1e-12)
