"""What a perfect prior shows: laws of distillation on the closed-form mixture of conftest.

Oracle: the gradient of the mixture's density by autograd. It fails when the hats of the mixture use alpha instead of
alpha^2, when the modes are weighted by distance instead of its square, and when `noise` or `split` is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import KINDS, Kind, join, noise, split
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Field
from threestudio_rf.core.sample import solve

DOUBLE = torch.float64
STABLE = DiscreteVP(betas("scaled_linear", 1000, start=0.00085, end=0.012))
Make = Callable[..., Any]


def gaussian(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def test_the_mixture_agrees_with_the_gradient_of_its_density(make_mixture: Make) -> None:
    mixture = make_mixture([[-1.0, 0.5], [1.0, 0.2], [0.0, 2.0]], 0.3)
    for schedule in (rectified_flow, STABLE):
        x = gaussian((5, 2)).requires_grad_()
        level = schedule(torch.tensor([0.01, 0.3, 0.5, 0.7, 0.999], dtype=DOUBLE))
        alpha, sigma = level.like(x)
        variance = alpha**2 * mixture.std**2 + sigma**2
        modes = torch.distributions.Normal(alpha[:, None] * mixture.means, variance.sqrt()[:, None])
        (score,) = torch.autograd.grad((modes.log_prob(x[:, None]).sum(-1).exp() @ mixture.weights).log().sum(), x)
        x0_hat, eps_hat = mixture.hats(x.detach(), level)
        assert torch.allclose(eps_hat, -sigma * score, atol=1e-9)
        assert torch.allclose(noise(x0_hat, eps_hat, level), x, atol=1e-12)


def test_reverse_noise_is_a_conditional_mean_whose_variance_is_below_one(make_mixture: Make) -> None:
    x0, eps = torch.randn(2, 50000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    mixture = make_mixture([[0.0]], 1.0)
    for t, rounded in [(0.9, 0.988), (0.5, 0.5), (0.1, 0.012)]:
        level = rectified_flow(torch.full((len(x0),), t, dtype=DOUBLE))
        variance = mixture.hats(noise(x0, eps, level), level)[1].var().item()
        expected = t**2 / ((1 - t) ** 2 + t**2)
        assert expected == pytest.approx(rounded, abs=5e-4) and variance == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_has_no_mean_gradient_at_the_mean_of_a_gaussian(kind: Kind, make_mixture: Make) -> None:
    mixture = make_mixture([[0.7, -0.2]], 0.4)
    x0 = mixture.means.expand(8, 2)
    half = gaussian((4, 2))
    eps = torch.cat([half, -half])
    for schedule in (rectified_flow, STABLE):
        level = schedule(torch.tensor([0.1, 0.5, 0.8, 0.98], dtype=DOUBLE).repeat(2))
        hats = mixture.hats(noise(x0, eps, level), level)
        residual = join(kind, *hats, level) - join(kind, x0, eps, level)
        assert residual.abs().max() > 0.01
        assert torch.allclose(residual[:4] + residual[4:], torch.zeros(4, 2, dtype=DOUBLE), atol=1e-12)


def test_one_step_from_high_noise_is_worse_than_many(make_mixture: Make) -> None:
    mixture = make_mixture([[-1.0], [1.0]], 0.1)
    table = STABLE
    field = mixture.field("eps", table)
    start = torch.full((256,), 0.9, dtype=DOUBLE)
    data = mixture.means[torch.arange(256) % 2] + 0.1 * gaussian((256, 1))
    x_t = noise(data, gaussian((256, 2))[:, 1:], table(start))

    def error(x: Tensor) -> float:
        return (x.abs() - 1).abs().mean().item()

    one = split("eps", field(x_t, start), x_t, table(start))[0]
    *_, many = solve(Field(field, "eps", table), x_t, torch.linspace(0.9, 0, 51, dtype=DOUBLE))
    assert error(one) > 3 * error(many) and error(many) < 0.15
