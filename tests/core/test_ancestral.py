"""Ancestral sampling: DDIM with fresh noise. Its oracle, DDIM of diffusers with eta 0.5 and 1, is in test_solve.

The closed forms here fail when the kept noise is not reduced by the fresh one, when the fresh noise lacks the factor
sigma_s / sigma_t, and when every path is taken for variance preserving (1 - alpha_t^2 / alpha_s^2). A squared eta is
seen by the oracle only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, betas, column, rectified_flow
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.core.solve import Rule, fresh_noise

DOUBLE = torch.float64
STABLE = DiscreteVP(betas("scaled_linear", 1000, start=0.00085, end=0.012))
Make = Callable[..., Any]


def gaussian(shape: tuple[int, ...] = (3, 2, 4, 5)) -> Tensor:
    """Noise; the batch differs from the width."""
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


def even(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=DOUBLE)


def end(states: Any) -> Tensor:
    return list(states)[-1]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of both."""
    return torch.sin(2 * x) * column(1 + t, x)


def test_ancestral_sampling_without_noise_is_the_deterministic_one() -> None:
    x, times = gaussian(), even(0.9, 0.0, 5)
    for schedule in (rectified_flow, STABLE):
        settings: dict[str, Any] = {"schedule": schedule, "kind": "v"}
        quiet = solve(Field(network, **settings), x, times, generator=generator(0, 0, "z"), rule=Rule("ddim", 0.0))
        for one, other in zip(quiet, solve(Field(network, **settings), x, times), strict=True):
            assert torch.allclose(one, other, atol=1e-12)


def test_ddim_with_all_steps_and_eta_one_is_the_small_posterior_in_mean_and_variance() -> None:
    table = STABLE
    k = torch.arange(1000)
    now, after = table.levels(k), table.levels(k - 1)
    beta, abar, abar_prev = table.betas, now.alpha**2, after.alpha**2
    kick = fresh_noise(now, after, eta=1.0)
    assert torch.allclose(kick**2, beta * (1 - abar_prev) / (1 - abar), atol=1e-12)
    x0, eps = torch.randn(2, 1000, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    mean = noise(x0, eps, Level(after.alpha, (after.sigma**2 - kick**2).clamp(min=0).sqrt()))
    c1 = beta * abar_prev.sqrt() / (1 - abar)
    c2 = (1 - abar_prev) * (1 - beta).sqrt() / (1 - abar)
    posterior = column(c1, x0) * x0 + column(c2, x0) * noise(x0, eps, now)
    assert torch.allclose(mean, posterior, atol=1e-11)


def test_fresh_noise_keeps_the_marginal_of_any_gaussian_path() -> None:
    for schedule in (rectified_flow, STABLE):
        now, after = schedule(torch.tensor([1.0, 0.6], dtype=DOUBLE)), schedule(torch.tensor([0.5, 0.2], dtype=DOUBLE))
        kick = fresh_noise(now, after, eta=1.0)
        kept = (after.sigma**2 - kick**2).sqrt()
        ratio = now.alpha / after.alpha
        assert torch.allclose(ratio * after.sigma**2, kept * now.sigma, atol=1e-12), "the covariance of x_t and x_s"


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [rectified_flow, STABLE], ids=["straight", "vp"])
def test_ancestral_sampling_reproduces_the_data(eta: float, schedule: Schedule, make_mixture: Make) -> None:
    mixture = make_mixture([[0.7]], 0.4)
    start = torch.randn(4000, 1, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    states = solve(
        Field(mixture.field("v", schedule), "v", schedule),
        start,
        even(1.0, 0.0, 80) ** 2,
        generator=generator(0, 0, "z"),
        rule=Rule("ddim", eta),
    )
    final = end(states)
    assert final.mean().item() == pytest.approx(0.7, abs=0.03) and final.std().item() == pytest.approx(0.4, abs=0.03)


def test_ancestral_sampling_depends_on_its_generator_only_and_refuses_to_invert() -> None:
    x, times = gaussian(), even(1.0, 0.0, 4)

    def run(times: Tensor, seed: int = 0, eta: float = 1.0) -> Tensor:
        field = Field(network, "flow", rectified_flow)
        return end(solve(field, x, times, generator=generator(seed, 0, "z"), rule=Rule("ddim", eta)))

    assert torch.equal(run(times), run(times)) and not torch.equal(run(times), run(times, seed=1))
    for bad in (times.flip(0), times[[0, 0, 1]], times[[0, 4, 4]]):
        with pytest.raises(ValueError, match="falling times"):
            run(bad)
    with pytest.raises(ValueError, match="eta"):
        run(times, eta=1.5)
