"""Levels, tables of betas, the bridge between the two paths.

Oracle: the tables of diffusers' DDPMScheduler. It fails when
- `scaled_linear` is not squared, or `linear` and `scaled_linear` are exchanged,
- cosine's offset is 0.08 instead of 0.008,
- sigmoid runs over -5 .. 5.
The anchors of Stable Diffusion and DDPM fail when abar is the product of betas, or when sigma is 1 - abar.
"""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from threestudio_rf.core.level import (
    ALIASES,
    BETAS,
    Continuous,
    DiscreteVP,
    Level,
    betas,
    column,
    rectified_flow,
    to_straight,
    zero_terminal,
)

DOUBLE = torch.float64
STABLE = DiscreteVP(betas("scaled_linear", 1000, start=0.00085, end=0.012))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(ours, theirs) for theirs, ours in ALIASES["diffusers"].items()], ids=lambda name: name
)
def test_a_table_of_betas_is_that_of_diffusers(ours: str, theirs: str) -> None:
    scheduler = DDPMScheduler(beta_schedule=theirs, beta_start=0.00085, beta_end=0.012)
    table = DiscreteVP(betas(ours, 1000, start=0.00085, end=0.012))
    assert torch.allclose(table.betas.float(), scheduler.betas, atol=1e-6)
    assert torch.allclose(table.abar.float(), scheduler.alphas_cumprod, atol=3e-6)


def test_given_betas_override_the_name_as_in_diffusers() -> None:
    given = [0.1, 0.2, 0.3]
    scheduler = DDPMScheduler(beta_schedule="linear", trained_betas=given)
    for name in BETAS:
        assert torch.allclose(betas(name, 3, trained=given).float(), scheduler.betas)


def test_anchors_of_stable_diffusion_and_ddpm() -> None:
    linear = DiscreteVP(betas("linear", 1000, start=1e-4, end=0.02))
    abar = STABLE.abar
    assert abar[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert abar[500].item() == pytest.approx(0.276333, abs=1e-6)
    assert abar[999].item() == pytest.approx(0.0046601, abs=1e-7)
    alpha, sigma = STABLE(torch.ones(1, dtype=DOUBLE))
    assert alpha.item() == pytest.approx(0.068265, abs=1e-6) and sigma.item() == pytest.approx(0.997667, abs=1e-6)
    assert linear.abar[500].item() == pytest.approx(0.0777967, abs=1e-7)
    assert linear.abar[999].item() == pytest.approx(4.03583e-5, abs=1e-10)


def test_ldm_and_improved_diffusion_call_other_tables_linear() -> None:
    ldm = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=DOUBLE) ** 2
    assert torch.equal(betas(ALIASES["ldm"]["linear"], 1000), ldm)
    assert torch.equal(betas(ALIASES["ldm"]["sqrt_linear"], 1000), torch.linspace(0.00085, 0.012, 1000, dtype=DOUBLE))
    assert (betas("linear", 1000) - betas("scaled_linear", 1000)).abs().max() > 1e-3
    rescaled = betas(ALIASES["improved-diffusion"]["linear"], 250, start=1e-4 * 4, end=0.02 * 4)
    assert rescaled[0].item() == pytest.approx(4e-4) and rescaled[-1].item() == pytest.approx(0.08)
    assert {ours for names in ALIASES.values() for ours in names.values()} <= set(BETAS)


def test_sqrt_is_the_root_of_a_line() -> None:
    assert torch.allclose(betas("sqrt", 5, start=0.01, end=0.09) ** 2, torch.linspace(0.01, 0.09, 5, dtype=DOUBLE))


def test_cosine_is_the_squared_cosine_up_to_its_last_entry() -> None:
    n = 100

    def f(i: int) -> float:
        return math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2

    table = DiscreteVP(betas("cosine", n))
    for k in (0, 50, 98):
        assert table.abar[k].item() == pytest.approx(f(k + 1) / f(0), rel=1e-12)
    assert table.betas.max().item() == 0.999


@pytest.mark.parametrize("name", [name for name in BETAS if name != "trained_betas"])
def test_a_table_is_double_and_falls(name: str) -> None:
    table = DiscreteVP(betas(name, 200))
    assert table.abar.dtype == DOUBLE and len(table) == 200
    assert bool((table.abar.diff() < 0).all()) and table.abar[-1] > 0 and table.abar[0] < 1


def test_a_zero_terminal_table_is_that_of_diffusers_and_ends_without_data() -> None:
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    table = DiscreteVP(zero_terminal(STABLE.betas))
    assert torch.allclose(table.abar.float(), theirs.alphas_cumprod, atol=1e-6)
    assert table.levels(torch.tensor([999])).alpha == 0 and table.time_at(torch.ones(1)) == 1


@pytest.mark.parametrize("t_prime", [0.1, 0.5, 0.75, 0.99])
def test_a_path_by_its_formula_finds_the_time_of_a_noise_level(t_prime: float) -> None:
    path = Continuous(lambda t: Level((t * math.pi / 2).cos(), (t * math.pi / 2).sin()))
    wanted = torch.tensor([t_prime], dtype=DOUBLE)
    assert torch.allclose(to_straight(path(path.time_at(wanted)))[0], wanted, atol=1e-12)
    assert path.table is None and rectified_flow.time_at(wanted) is wanted
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        path(torch.tensor([1.1]))


def test_betas_that_are_no_betas_raise() -> None:
    for name, given in [("squaredcos", None), ("trained_betas", None), ("linear", [[0.1, 0.2]]), ("linear", [0.1])]:
        with pytest.raises(ValueError, match="expected"):
            betas(name, 2, trained=given)
    for bad in ([0.0, 0.1], [1.0, 0.1], [1.0], [0.1, 1.1], [0.1, math.nan], [[0.1]], []):
        with pytest.raises(ValueError, match="expected"):
            DiscreteVP(torch.tensor(bad))
    with pytest.raises(ValueError, match="clean or first"):
        DiscreteVP(torch.tensor([0.1]), final="one")  # type: ignore[arg-type]


def test_a_level_multiplies_samples_and_not_columns() -> None:
    x = torch.ones(3, 2, 4, 5)
    alpha, sigma = rectified_flow(torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)).like(x)
    assert alpha.shape == sigma.shape == (3, 1, 1, 1) and alpha.dtype == x.dtype
    assert torch.allclose((sigma * x)[:, 1, 3, 4], torch.tensor([0.1, 0.2, 0.3]))
    assert column(torch.ones(3), torch.ones(3)).shape == (3,)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_a_level_of_the_wrong_batch_size_raises(size: int) -> None:
    with pytest.raises(ValueError, match="one per sample"):
        rectified_flow(torch.zeros(size)).like(torch.ones(3, 2, 4, 5))


@pytest.mark.parametrize("schedule", [rectified_flow, STABLE])
@pytest.mark.parametrize("t", [-0.01, 1.01, 500.0, math.nan])
def test_a_time_outside_the_unit_interval_raises(schedule: DiscreteVP, t: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        schedule(torch.tensor([0.5, t]))


def test_label_and_level_use_the_same_index_and_single_precision_is_enough() -> None:
    k = torch.arange(1000)
    t = STABLE.time(k).float()
    assert torch.equal(STABLE.index(t), k)
    assert torch.equal(STABLE(t).alpha, STABLE.levels(k).alpha.float())
    anywhere = torch.rand(200, generator=torch.Generator().manual_seed(0)).clamp(min=1e-6)
    assert torch.equal(STABLE(anywhere).sigma, STABLE.levels(STABLE.index(anywhere)).sigma.float())
    assert STABLE.index(torch.tensor([0.0, 1e-6, 0.002, 1.0])).tolist() == [0, 0, 1, 999]


def test_every_level_of_a_table_preserves_variance() -> None:
    alpha, sigma = STABLE.levels(torch.arange(-1, 1000))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-12, rtol=0)


def test_the_level_of_time_zero_is_clean_or_the_first_on_request() -> None:
    zero = torch.zeros(1, dtype=DOUBLE)
    first = DiscreteVP(STABLE.betas, final="first")
    assert STABLE(zero) == (1, 0)
    assert first(zero) == first(zero + 0.001) == (STABLE.abar[0].sqrt(), (1 - STABLE.abar[0]).sqrt())


def test_an_index_outside_the_table_raises() -> None:
    for k in (-2, 1000):
        with pytest.raises(ValueError, match=r"-1\.\.999"):
            STABLE.levels(torch.tensor([k]))


def test_the_bridge_puts_a_noisy_sample_on_the_straight_path_and_back() -> None:
    x0, eps = torch.randn(2, 5, 7, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    level = STABLE.levels(torch.tensor([3, 100, 500, 998, 999]))
    alpha, sigma = level.like(x0)
    t, scale = to_straight(level)
    straight = (alpha * x0 + sigma * eps) / column(scale, x0)
    a, s = rectified_flow(t).like(x0)
    assert torch.allclose(straight, a * x0 + s * eps, atol=1e-12)
    back = rectified_flow(t)
    assert torch.allclose(scale * back.alpha, level.alpha, atol=1e-12)
    assert torch.allclose(scale * back.sigma, level.sigma, atol=1e-12)


def test_the_bridge_leaves_the_straight_path_alone_and_holds_at_both_ends() -> None:
    t = torch.linspace(0, 1, 11, dtype=DOUBLE)
    there, scale = to_straight(rectified_flow(t))
    assert torch.allclose(there, t, atol=1e-12) and torch.equal(scale, torch.ones_like(t))
    for level in (Level(torch.ones(1), torch.zeros(1)), Level(torch.zeros(1), torch.ones(1))):
        assert to_straight(level) == (level.sigma, torch.ones(1))


def test_equal_time_is_not_equal_noise_on_the_two_paths() -> None:
    t, _ = to_straight(STABLE.levels(torch.tensor([20, 980, 999])))
    assert t.tolist() == pytest.approx([0.121, 0.929, 0.936], abs=5e-4)


def test_the_index_found_for_a_straight_time_is_the_nearest_one() -> None:
    straight = torch.cat([torch.linspace(0.001, 0.999, 301, dtype=DOUBLE), torch.tensor([0.0, 1.0], dtype=DOUBLE)])
    table, _ = to_straight(STABLE.levels(torch.arange(1000)))
    brute = (table - straight[:, None]).abs().argmin(1)
    assert torch.equal(STABLE.index(STABLE.time_at(straight)), brute)
    assert STABLE.time_at(torch.tensor([0.0, 0.95])).tolist() == [0.0, 1.0]


def test_the_time_found_for_a_straight_time_inverts_the_table() -> None:
    k = torch.arange(1000)
    straight, _ = to_straight(STABLE.levels(k))
    assert torch.allclose(STABLE.time_at(straight), STABLE.time(k), atol=1e-12)


def test_a_level_follows_the_precision_of_time() -> None:
    for dtype in (torch.float32, DOUBLE):
        level = STABLE(torch.full((2,), 0.5, dtype=dtype))
        assert isinstance(level, Level) and level.alpha.dtype == level.sigma.dtype == dtype
