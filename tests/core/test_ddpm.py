"""The discrete process: its tables, posterior, variances and draws. Its oracle is in test_ddpm_oracle.

The closed-form divergence of two normal distributions checks the weights of the bound for every kind; it fails when
the factor (sigma / det)^2 is left out. The product of two normal densities checks the posterior; it fails when c1 and
c2 are exchanged or abar stands for abar_prev.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import KINDS, Kind, join, noise, split
from threestudio_rf.core.ddpm import DDPM, ancestral_loop, clip, draw_previous, dynamic_threshold
from threestudio_rf.core.level import betas, column
from threestudio_rf.core.random import generator

DOUBLE = torch.float64
STABLE = betas("scaled_linear", 1000, start=0.00085, end=0.012)
PROCESS = DDPM(STABLE)
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def sample(count: int = 2, dtype: torch.dtype = DOUBLE) -> Any:
    """Each (3, 2, 4, 5): the batch differs from the width."""
    return torch.randn(count, 3, 2, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))


def index(*k: int) -> Tensor:
    return torch.tensor(k)


def few(n: int) -> Tensor:
    return betas("linear", n, start=0.01, end=0.1)


def test_the_forward_marginal_has_its_mean_and_variance() -> None:
    x0, eps = sample()
    k = index(0, 500, 999)
    mean, variance, log_variance = PROCESS.q_mean_variance(x0, k)
    assert torch.allclose(mean + variance.sqrt() * eps, PROCESS.q_sample(x0, k, eps), atol=1e-12)
    assert torch.allclose(log_variance.exp(), variance, atol=1e-12)
    assert torch.allclose(variance[:, 0, 0, 0], 1 - PROCESS.abar[k], atol=1e-12) and variance.shape == x0.shape


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 2, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])
def test_any_rank_and_precision_is_allowed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x0, eps = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    k = index(0, 500, 999)
    x_k = PROCESS.q_sample(x0, k, eps)
    for result in (x_k, *PROCESS.q_mean_variance(x0, k), *PROCESS.posterior(x0, x_k, k)):
        assert result.shape == shape and result.dtype == dtype


def test_tables_of_the_neighbours_start_at_one_and_end_at_zero() -> None:
    assert PROCESS.abar_prev[0] == 1 and PROCESS.abar_next[-1] == 0 and len(PROCESS) == 1000
    assert torch.equal(PROCESS.abar_prev[1:], PROCESS.abar[:-1])
    assert torch.equal(PROCESS.abar_next[:-1], PROCESS.abar[1:])


def test_the_posterior_follows_from_the_product_of_two_normal_densities() -> None:
    process = PROCESS
    k = torch.arange(1, 1000)
    x0, x_k = torch.randn(2, 999, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    beta, prev = (column(table[k], x0) for table in (process.betas, process.abar_prev))
    precision = 1 / (1 - prev) + (1 - beta) / beta
    mean = (prev.sqrt() * x0 / (1 - prev) + (1 - beta).sqrt() * x_k / beta) / precision
    posterior = process.posterior(x0, x_k, k)
    assert torch.allclose(posterior.variance, (1 / precision).expand_as(x0), atol=1e-12)
    assert torch.allclose(posterior.mean, mean, atol=1e-11)


def test_the_mean_through_the_data_is_the_mean_through_the_noise_at_every_index() -> None:
    k = torch.arange(1000)
    x_k, eps_hat = torch.randn(2, 1000, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    beta, abar = (column(table[k], x_k) for table in (PROCESS.betas, PROCESS.abar))
    through_eps = (x_k - beta / (1 - abar).sqrt() * eps_hat) / (1 - beta).sqrt()
    reverse = PROCESS.p_mean_variance(eps_hat, x_k, k, kind="eps")
    assert torch.allclose(reverse.previous.mean, through_eps, atol=1e-11)


def test_with_a_clip_only_the_route_through_the_data_is_bounded() -> None:
    x_k, p = sample()
    k = index(990, 995, 999)
    reverse = PROCESS.p_mean_variance(p, x_k, k, kind="eps", limit=clip)
    free = PROCESS.p_mean_variance(p, x_k, k, kind="eps")
    assert free.x0_hat.abs().max() > 5 and reverse.x0_hat.abs().max() <= 1
    assert torch.equal(reverse.previous.mean, PROCESS.posterior(reverse.x0_hat, x_k, k).mean)
    assert not torch.allclose(reverse.previous.mean, free.previous.mean, atol=1e-2)


@pytest.mark.parametrize("kind", [*KINDS, "previous"])
def test_a_perfect_prediction_of_any_kind_gives_the_posterior(kind: Any) -> None:
    x0, eps = sample()
    k = index(0, 500, 999)
    x_k, level = PROCESS.q_sample(x0, k, eps), PROCESS.table.levels(k)
    posterior = PROCESS.posterior(x0, x_k, k)
    p = posterior.mean if kind == "previous" else join(kind, x0, eps, level)
    reverse = PROCESS.p_mean_variance(p, x_k, k, kind=kind)
    assert torch.allclose(reverse.x0_hat, x0, atol=1e-10)
    assert torch.allclose(reverse.previous.mean, posterior.mean, atol=1e-11)
    assert torch.equal(reverse.previous.variance, posterior.variance)


def test_the_hook_acts_before_the_limit() -> None:
    x_k, p = sample()
    reverse = PROCESS.p_mean_variance(p, x_k, index(1, 2, 3), kind="x0", hook=lambda x0: 0 * x0 + 5, limit=clip)
    assert torch.equal(reverse.x0_hat, torch.ones_like(p))


def test_the_dynamic_threshold_leaves_small_samples_alone_and_bounds_large_ones_each_by_itself() -> None:
    x0 = sample()[0] / 10
    x0[1] *= 100
    limited = dynamic_threshold(x0)
    assert torch.equal(limited[[0, 2]], x0[[0, 2]]) and limited[1].abs().max() == 1


def test_the_upper_share_moves_the_variance_from_its_lower_to_its_upper_bound() -> None:
    low, half, high = (DDPM(STABLE, upper_share=w).variance for w in (0.0, 0.5, 1.0))
    assert torch.equal(high, STABLE) and torch.allclose(half, (low + high) / 2, atol=1e-15)
    assert low[0] == 0 and bool((low <= high).all())


def test_both_conventions_of_the_first_log_variance() -> None:
    floor, second = (DDPM(STABLE, first_log_variance=rule).log_variance for rule in ("floor", "second"))
    assert floor[0].item() == pytest.approx(-46.0517, abs=1e-4)
    assert second[0] == second[1] and torch.equal(floor[1:], second[1:])


def test_the_large_variance_starts_with_the_small_one_of_the_second_index() -> None:
    x_k, p = sample()
    reverse = PROCESS.p_mean_variance(p, x_k, index(0, 1, 999), kind="eps", variance="large")
    expected = torch.stack([PROCESS.variance[1], STABLE[1], STABLE[999]])
    assert torch.allclose(reverse.previous.variance[:, 0, 0, 0], expected, atol=1e-15)


def test_the_learned_range_reaches_both_bounds() -> None:
    x_k, p = sample()
    k = index(1, 500, 999)
    for place, bound in [(-1.0, PROCESS.variance), (1.0, PROCESS.betas)]:
        both = torch.cat([p, torch.full_like(p, place)], 1)
        reverse = PROCESS.p_mean_variance(both, x_k, k, kind="eps", variance="learned_range")
        assert torch.allclose(reverse.previous.variance[:, 0, 0, 0], bound[k], rtol=1e-10)
        assert torch.equal(reverse.x0_hat, PROCESS.p_mean_variance(p, x_k, k, kind="eps").x0_hat)


def test_the_first_index_draws_its_mean_per_sample() -> None:
    x_k, p = sample()
    previous = PROCESS.p_mean_variance(p, x_k, index(0, 500, 0), kind="eps").previous
    drawn = draw_previous(previous, index(0, 500, 0), generator(0, 0, "z"))
    assert torch.equal(drawn[[0, 2]], previous.mean[[0, 2]]) and not torch.equal(drawn[1], previous.mean[1])


def test_temperature_scales_and_repeat_shares_the_noise() -> None:
    x_k, p = sample()
    k = index(500, 500, 500)
    previous = PROCESS.p_mean_variance(p, x_k, k, kind="eps").previous

    def kick(**settings: Any) -> Tensor:
        return draw_previous(previous, k, generator(0, 0, "z"), **settings) - previous.mean

    assert torch.allclose(kick(temperature=0.5), 0.5 * kick(), atol=1e-12)
    assert torch.equal(kick(temperature=0.0), torch.zeros_like(p))
    shared = kick(repeat_noise=True)
    assert torch.allclose(shared, shared[:1].expand_as(shared), atol=1e-12)
    assert not torch.allclose(kick()[0], kick()[1])


def test_noise_dropout_zeroes_a_share_and_keeps_the_mean_of_the_rest() -> None:
    x = torch.zeros(2, 20000, dtype=DOUBLE)
    k = index(500, 500)
    previous = PROCESS.p_mean_variance(x, x, k, kind="eps").previous
    whole, holes = (draw_previous(previous, k, generator(0, 0, "z"), noise_dropout=share) for share in (0.0, 0.25))
    gone = holes == 0
    assert gone.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(holes[~gone], whole[~gone] / 0.75, atol=1e-12)


def test_a_loop_with_a_perfect_network_ends_in_the_data(make_mixture: Any) -> None:
    mixture, process = make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.05), DDPM(few(50))
    x = torch.randn(64, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    field = mixture.field("v", process.table)
    *_, last = ancestral_loop(process, field, x, kind="v", generator=generator(0, 0, "z"))
    assert last.k == 0 and torch.allclose(last.x, last.x0_hat, atol=1e-12)
    assert (last.x[:, None] - mixture.means).norm(dim=-1).min(1).values.max() < 0.3
    assert 10 < (last.x[:, 0] > 0).sum() < 54


def test_anchors_of_the_weights_of_the_bound() -> None:
    weights = PROCESS.lvlb_weights("eps")
    for k, value in {0: 0.50319, 1: 0.50319, 10: 0.051756, 500: 0.0033491, 999: 0.0061017}.items():
        assert weights[k].item() == pytest.approx(value, rel=2e-5)
    assert PROCESS.lvlb_weights("x0")[100].item() == pytest.approx(0.0560, abs=5e-5)
    assert PROCESS.lvlb_weights("x0", ldm_compat=True)[100].item() == pytest.approx(0.4276, abs=5e-5)
    assert torch.equal(PROCESS.lvlb_weights("eps", ldm_compat=True), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_the_bound_turns_a_squared_error_into_a_divergence(kind: Kind) -> None:
    x0, eps = sample()
    k = index(1, 500, 999)
    x_k, level = PROCESS.q_sample(x0, k, eps), PROCESS.table.levels(k)
    target = join(kind, x0, eps, level)
    p = target + 0.1 * eps.cos()
    ours, theirs = PROCESS.posterior(x0, x_k, k), PROCESS.p_mean_variance(p, x_k, k, kind=kind).previous
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(ours.mean, ours.variance.sqrt()),
        torch.distributions.Normal(theirs.mean, theirs.variance.sqrt()),
    )
    weighted = column(PROCESS.lvlb_weights(kind)[k], x0) * (p - target).square()
    assert torch.allclose(divergence, weighted, rtol=1e-5, atol=1e-12)


def test_data_and_noise_of_a_noisy_sample_are_inverse_through_the_table() -> None:
    x_k, eps = sample()
    level = PROCESS.table.levels(index(0, 500, 999))
    x0_hat, _ = split("eps", eps, x_k, level)
    assert torch.allclose(split("x0", x0_hat, x_k, level)[1], eps, atol=1e-9)
    assert torch.allclose(noise(x0_hat, eps, level), x_k, atol=1e-11)


def test_bad_input_raises() -> None:
    x_k, p = sample()
    k = index(1, 2, 3)
    calls: list[tuple[Any, str]] = [
        (lambda: DDPM(STABLE, upper_share=1.5), "upper_share"),
        (lambda: DDPM(STABLE, first_log_variance="ldm"), "floor or second"),  # type: ignore[arg-type]
        (lambda: DDPM(STABLE[:1]), "at least two"),
        (lambda: PROCESS.posterior(p, x_k, index(-1, 2, 3)), r"expected 0\.\.999"),
        (lambda: PROCESS.posterior(p, x_k, index(1, 2, 1000)), r"expected 0\.\.999"),
        (lambda: PROCESS.posterior(p, x_k, index(1, 2, 3, 4, 5)), "one per sample"),
        (lambda: PROCESS.posterior(p[:1], x_k, k), "expected equal"),
        (lambda: PROCESS.p_mean_variance(p, x_k, k, kind="epsilon"), "got kind"),  # type: ignore[arg-type]
        (lambda: PROCESS.p_mean_variance(p, x_k, k, kind="eps", variance="fixed"), "got variance"),  # type: ignore[arg-type]
        (lambda: PROCESS.p_mean_variance(p, x_k, k, kind="eps", variance="learned"), "got 2 channels, expected 4"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
