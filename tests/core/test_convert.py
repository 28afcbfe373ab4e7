"""Parametrizations: one table of rows, one 2x2 solve, and the identities of the distillation residual.

Oracles: diffusers' DDPMScheduler.add_noise and get_velocity, the table of kinds solved by hand, the derivative of the
straight path. They fail when the row of v is negated or its entries are exchanged, when the row of flow is negated
(x0 - eps), and when `noise` exchanges alpha and sigma; the round trip `test_split_inverts_join` notices only the last.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from threestudio_rf.core.convert import KINDS, Kind, join, noise, sign, split
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, betas, column, rectified_flow, to_straight

DOUBLE = torch.float64
STABLE = DiscreteVP(betas("scaled_linear", 1000, start=0.00085, end=0.012))
SCHEDULES = {"straight": rectified_flow, "vp": STABLE}
TIMES = torch.tensor([0.02, 0.37, 0.98], dtype=DOUBLE)


def pair(dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    """x0 and eps (3, 2, 4, 5): the batch differs from the width."""
    x0, eps = torch.randn(2, 3, 2, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return x0.to(dtype), eps.to(dtype)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (DOUBLE, 1e-12)])
def test_split_inverts_join(kind: Kind, schedule: Schedule, dtype: torch.dtype, tolerance: float) -> None:
    x0, eps = pair(dtype)
    level = schedule(torch.tensor([0.3, 0.5, 0.7], dtype=dtype))
    x0_hat, eps_hat = split(kind, join(kind, x0, eps, level), noise(x0, eps, level), level)
    assert x0_hat.dtype == dtype
    assert torch.allclose(x0_hat, x0, atol=tolerance) and torch.allclose(eps_hat, eps, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_level_of_the_wrong_batch_size_raises(kind: Kind) -> None:
    x0, eps = pair()
    for size in (1, 4, 5):
        with pytest.raises(ValueError, match="one per sample"):
            split(kind, x0, eps, rectified_flow(torch.full((size,), 0.5)))


def test_noise_is_that_of_diffusers() -> None:
    x0, eps = pair(torch.float32)
    k = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert torch.allclose(noise(x0, eps, STABLE.levels(k)), scheduler.add_noise(x0, eps, k), atol=1e-5)


def test_v_of_the_clean_latent_is_the_velocity_of_diffusers() -> None:
    x0, eps = pair(torch.float32)
    k = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert torch.allclose(join("v", x0, eps, STABLE.levels(k)), scheduler.get_velocity(x0, eps, k), atol=1e-5)


def test_flow_is_the_derivative_of_the_straight_path() -> None:
    x0, eps = pair()
    step = 1e-6
    ends = [noise(x0, eps, rectified_flow(TIMES + sign * step)) for sign in (-1, 1)]
    assert torch.allclose((ends[1] - ends[0]) / (2 * step), join("flow", x0, eps, rectified_flow(TIMES)), atol=1e-8)


def test_the_table_of_kinds_solved_by_hand(schedule: Schedule) -> None:
    p, x_t = pair()
    level = schedule(TIMES)
    a, s = level.like(x_t)
    square, both = a**2 + s**2, a + s
    by_hand = {
        "x0": (p, (x_t - a * p) / s),
        "eps": ((x_t - s * p) / a, p),
        "v": ((a * x_t - s * p) / square, (s * x_t + a * p) / square),
        "flow": ((x_t - s * p) / both, (x_t + a * p) / both),
    }
    for kind in KINDS:
        for ours, theirs in zip(split(kind, p, x_t, level), by_hand[kind], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)


def test_v_of_the_noisy_latent_uses_the_same_coefficients_with_exchanged_roles() -> None:
    x0, eps = pair()
    level = STABLE(TIMES)
    a, s = level.like(x0)
    x_t, v = noise(x0, eps, level), join("v", x0, eps, level)
    assert torch.allclose(v, a * eps - s * x0, atol=1e-12)
    assert torch.allclose(x0, a * x_t - s * v, atol=1e-12)
    assert torch.allclose(eps, a * v + s * x_t, atol=1e-12)
    assert torch.allclose(x_t**2 + v**2, x0**2 + eps**2, atol=1e-12)


@pytest.mark.parametrize(("kind", "t"), [("eps", 1.0), ("x0", 0.0)])
def test_a_singular_level_raises(kind: Kind, t: float) -> None:
    x0, eps = pair()
    with pytest.raises(ValueError, match="no zero"):
        split(kind, x0, eps, rectified_flow(torch.tensor([0.5, t, 0.5])))


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_v_and_flow_are_never_singular(kind: Kind) -> None:
    x0, eps = pair()
    level = rectified_flow(torch.tensor([0.0, 0.5, 1.0], dtype=DOUBLE))
    x0_hat, eps_hat = split(kind, join(kind, x0, eps, level), noise(x0, eps, level), level)
    assert torch.allclose(x0_hat, x0, atol=1e-12) and torch.allclose(eps_hat, eps, atol=1e-12)


def test_unknown_kinds_and_unequal_shapes_raise() -> None:
    x0, eps = pair()
    level = rectified_flow(TIMES)
    with pytest.raises(ValueError, match="got kind 'velocity', expected one of x0, eps, v, flow"):
        join("velocity", x0, eps, level)  # type: ignore[arg-type]
    calls: list[Callable[[], object]] = [
        lambda: noise(x0, eps[:1], level),
        lambda: join("v", x0[:1], eps, level),
        lambda: split("v", eps[:1], x0, level),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="expected equal"):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_both_pairs_give_the_same_noisy_latent(kind: Kind, schedule: Schedule) -> None:
    x0, eps = pair()
    level = schedule(TIMES)
    x_t = noise(x0, eps, level)
    x0_hat, eps_hat = split(kind, torch.sin(x_t), x_t, level)
    a, s = level.like(x0)
    assert torch.allclose(a * (x0_hat - x0) + s * (eps_hat - eps), torch.zeros_like(x0), atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_residuals_of_all_kinds_differ_by_a_weight_only(kind: Kind, schedule: Schedule) -> None:
    x0, eps = pair()
    level = schedule(TIMES)
    x_t = noise(x0, eps, level)
    a, s = level.like(x0)
    x0_hat, eps_hat = split("flow", torch.sin(x_t), x_t, level)
    weight = {"x0": -s / a, "eps": torch.ones_like(a), "v": (a**2 + s**2) / a, "flow": (a + s) / a}[kind]
    residual = join(kind, x0_hat, eps_hat, level) - join(kind, x0, eps, level)
    assert torch.allclose(residual, weight * (eps_hat - eps), atol=1e-11)
    assert bool((sign(kind) * weight > 0).all()), "the sign makes every residual point downhill"


def test_the_flow_residual_weighs_the_noise_and_the_data_residual() -> None:
    x0, eps = pair()
    level = rectified_flow(TIMES)
    x_t = noise(x0, eps, level)
    u_hat, t = torch.sin(x_t), column(TIMES, x0)
    x0_hat, eps_hat = split("flow", u_hat, x_t, level)
    r = u_hat - (eps - x0)
    assert torch.allclose(x0_hat, x_t - t * u_hat, atol=1e-12)
    assert torch.allclose(eps_hat, x_t + (1 - t) * u_hat, atol=1e-12)
    assert torch.allclose(eps_hat - eps, (1 - t) * r, atol=1e-12)
    assert torch.allclose(x0 - x0_hat, t * r, atol=1e-12)


def test_one_residual_is_the_gradient_in_the_data_and_minus_that_in_the_noise() -> None:
    x0, eps = (x.requires_grad_() for x in pair())
    level = rectified_flow(TIMES)
    u_hat = torch.sin(noise(x0, eps, level)).detach()
    grad_x0, grad_eps = torch.autograd.grad(0.5 * (eps - x0 - u_hat).square().sum(), (x0, eps))
    r = u_hat - (eps - x0)
    assert torch.allclose(grad_x0, r, atol=1e-12) and torch.allclose(grad_eps, -r, atol=1e-12)


def test_the_reverse_noise_step_reaches_eps_hat_at_k_one_minus_t() -> None:
    x0, eps = pair()
    level = rectified_flow(TIMES)
    x_t = noise(x0, eps, level)
    u_hat, t = torch.sin(x_t), column(TIMES, x0)
    x0_hat, eps_hat = split("flow", u_hat, x_t, level)

    def step(k: Tensor | float) -> Tensor:
        return eps + k * (u_hat + x0 - eps)

    assert torch.allclose(step(1.0), x0 + u_hat, atol=1e-12)
    assert torch.allclose(step(1 - t), eps_hat, atol=1e-12)
    assert torch.allclose(step(1 - t), u_hat + x0_hat, atol=1e-12), "the older published form"
    assert torch.allclose(step(0.3) - eps, 0.3 / (1 - t) * (eps_hat - eps), atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_sum_to_one_commute_with_split(kind: Kind, schedule: Schedule) -> None:
    x_t, cond = pair()
    uncond, level = cond.cos(), schedule(TIMES)
    joint = split(kind, uncond + 7.5 * (cond - uncond), x_t, level)
    apart = [n + 7.5 * (c - n) for c, n in zip(*(split(kind, p, x_t, level) for p in (cond, uncond)), strict=True)]
    for one, other in zip(joint, apart, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_differences_of_predictions_scale_to_differences_of_noise(kind: Kind, schedule: Schedule) -> None:
    x_t, cond = pair()
    uncond, level = cond.cos(), schedule(TIMES)
    a, s = level.like(x_t)
    det = {"eps": a, "v": a**2 + s**2, "flow": a + s}[kind]
    difference = split(kind, cond, x_t, level)[1] - split(kind, uncond, x_t, level)[1]
    assert torch.allclose(difference, a / det * (cond - uncond), atol=1e-10)


def test_the_bridge_turns_any_prediction_into_the_velocity_of_the_straight_path() -> None:
    x0, eps = pair()
    level = STABLE(TIMES)
    x_t = noise(x0, eps, level)
    x0_hat, eps_hat = split("eps", torch.sin(x_t), x_t, level)
    t, scale = to_straight(level)
    straight = split("flow", eps_hat - x0_hat, x_t / column(scale, x_t), rectified_flow(t))
    assert torch.allclose(straight[0], x0_hat, atol=1e-11) and torch.allclose(straight[1], eps_hat, atol=1e-11)


def test_the_factor_sigma_over_alpha_is_the_scale_of_the_data_space() -> None:
    x_t, one = pair()
    other, level = one.cos(), STABLE(TIMES)
    a, s = level.like(x_t)
    data = [split("eps", p, x_t, level)[0] for p in (one, other)]
    assert torch.allclose(data[1] - data[0], s / a * (one - other), atol=1e-11)


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 2, 4, 5, 6)])
def test_any_rank_is_allowed(shape: tuple[int, ...]) -> None:
    x0, eps = torch.randn(2, *shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    level = Level(torch.tensor([0.9, 0.5, 0.2]), torch.tensor([0.1, 0.6, 0.9]))
    back = split("v", join("v", x0, eps, level), noise(x0, eps, level), level)
    assert torch.allclose(back[0], x0, atol=1e-12) and back[1].shape == shape
