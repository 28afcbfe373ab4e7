"""Laws of the one residual, with autograd and written-out formulas as outside oracles.

Mutations tried, each seen to fail: sign of space x0 dropped; division by B*M instead of M; `join(space, eps, x0)`;
target ignored; surrogate built as 1/2 |latents - sg(latents - grad)|^2 (loses small gradients to rounding).
"""

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.convert import join, noise
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.distill.guidance import Guidance
from threestudio_rf.distill.residual import gradient, surrogate

SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def draws(seed=0, shape=SHAPE, count=4):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def residual(x0, eps, u, level, space, **options):
    x_t = noise(x0, eps, level)
    settings = {"kind": "flow", "guidance": Guidance({"cond": 1.0}), "target": 1.0} | options
    return gradient(x0, x_t, eps, {"cond": u}, level, space=space, **settings) * x0[0].numel()


@pytest.mark.parametrize("schedule", [rectified_flow, DiscreteVP(betas("scaled_linear", 1000))])
def test_spaces_differ_by_a_weight_of_the_level_only(schedule):
    x0, eps, u, _ = draws()
    level = schedule(T)
    alpha, sigma = level.like(x0)
    in_eps = residual(x0, eps, u, level, "eps")
    factor = {"flow": (alpha + sigma) / alpha, "v": (alpha**2 + sigma**2) / alpha, "x0": sigma / alpha}
    for space, weight in factor.items():
        torch.testing.assert_close(residual(x0, eps, u, level, space), weight * in_eps, rtol=1e-12, atol=1e-12)


def test_the_flow_residual_is_the_gradient_of_half_the_squared_error_and_minus_that_of_the_noise():
    x0, eps, u, _ = draws()
    x0, eps = x0.requires_grad_(), eps.requires_grad_()
    (0.5 * (eps - x0 - u) ** 2).sum().backward()
    r = residual(x0.detach(), eps.detach(), u, rectified_flow(T), "flow")
    torch.testing.assert_close(r, x0.grad)
    torch.testing.assert_close(r, -eps.grad)


def test_the_reference_3d_loss_has_twice_our_gradient():
    x0, eps, c, n = draws(shape=(1, 2, 4, 5))
    level, scale = rectified_flow(T[:1]), 50.0
    x0.requires_grad_()
    (F.mse_loss(eps - x0, n + scale * (c - n)) / len(x0)).backward()
    ours = gradient(
        x0.detach(),
        noise(x0.detach(), eps, level),
        eps,
        {"cond": c, "uncond": n},
        level,
        kind="flow",
        space="flow",
        guidance=Guidance({"cond": scale, "uncond": 1 - scale}),
        target=1.0,
    )
    torch.testing.assert_close(2 * ours, x0.grad, rtol=1e-12, atol=1e-14)


def test_sds_is_the_denoising_part_plus_the_guidance_part():
    x0, eps, c, n = draws()
    level, scale = rectified_flow(T), 7.5
    x_t = noise(x0, eps, level)

    def part(weights, target):
        p = {"cond": c, "uncond": n}
        guide = Guidance(weights)
        return gradient(x0, x_t, eps, p, level, kind="flow", space="eps", guidance=guide, target=target)

    whole = part({"cond": scale, "uncond": 1 - scale}, 1.0)
    split = part({"uncond": 1.0}, 1.0) + scale * part({"cond": 1.0, "uncond": -1.0}, 0.0)
    torch.testing.assert_close(whole, split, rtol=1e-12, atol=1e-12)


def test_a_descent_step_reduces_the_distance_to_the_estimate_in_every_space():
    x0, eps, clean, _ = draws()
    level = rectified_flow(T)
    eps_hat = (noise(x0, eps, level) - level.like(x0)[0] * clean) / level.like(x0)[1]
    u = join("flow", clean, eps_hat, level)
    for space in ("x0", "eps", "v", "flow"):
        step = residual(x0, eps, u, level, space)
        assert (((x0 - 1e-3 * step) - clean) ** 2).sum() < ((x0 - clean) ** 2).sum(), space


def flat_colour_gradient(height, width, copies):
    colour = torch.full((1, 2, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    x0 = colour.expand(3 * copies, 2, height, width)
    level = rectified_flow(T.repeat(copies))
    eps, u = torch.ones_like(x0).detach(), (torch.ones_like(x0) * T.repeat(copies)[:, None, None, None]).detach()
    grad = gradient(
        x0.detach(),
        noise(x0.detach(), eps, level),
        eps,
        {"cond": u},
        level,
        kind="flow",
        space="flow",
        guidance=Guidance({"cond": 1.0}),
        target=1.0,
    )
    surrogate(x0, grad / len(x0)).backward()
    return colour.grad


def test_an_even_colour_gets_the_same_gradient_at_twice_the_resolution_and_for_a_repeated_batch():
    wanted = flat_colour_gradient(4, 5, 1)
    assert wanted.abs().min() > 0.01
    torch.testing.assert_close(flat_colour_gradient(8, 10, 1), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(flat_colour_gradient(4, 5, 3), wanted, rtol=1e-12, atol=0)


def test_the_surrogate_has_exactly_the_given_gradient_however_large_the_latents():
    latents = (1e3 * draws()[0].float()).requires_grad_()
    grad = 1e-6 * draws(1)[0].float()
    loss = surrogate(latents, grad)
    (3 * loss).backward()
    torch.testing.assert_close(latents.grad, 3 * grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach(), 0.5 * latents.numel() * (grad**2).sum())


def test_a_zero_gradient_stays_zero_for_latents_that_are_not_finite():
    latents = torch.full(SHAPE, torch.nan, requires_grad=True)
    loss = surrogate(latents, torch.zeros(SHAPE))
    loss.backward()
    assert loss == 0 and latents.grad.eq(0).all()


def test_a_missing_role_and_a_wrong_shape_are_errors():
    x0, eps, u, _ = draws()
    with pytest.raises(ValueError, match="uncond"):
        residual(x0, eps, u, rectified_flow(T), "flow", guidance=Guidance({"cond": 2.0, "uncond": -1.0}))
    with pytest.raises(ValueError, match="expected"):
        surrogate(x0, eps[:2])
