"""Draws of time, spacings, the shift.

Oracles: the tables and set_timesteps of diffusers' FlowMatchEulerDiscreteScheduler (shift 3), DDIMScheduler (leading,
trailing). They fail when the shift is inverted (b / (shift - (shift - 1) b)), when `flow_match_spacing` shifts its
smallest time only once or misses the closing 0, when the step numbers of DDIM are off by one, and when n / steps is
rounded the other way; the times of a sampler when the offset is left out or leaves the table, those from a picture when
strength rounds the other way or the first steps are kept. The statistics of the draws fail when the window is cut in
the unshifted time; those of DreamTime when sigma / alpha or a half of the exponent is left out, when its weights
underflow, and when the schedule is not passed on; strata when their times
are taken in turn or their law is not the whole one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.core.times import (
    ddim_steps,
    ddim_times,
    draw,
    dreamtime_at,
    flow_match_spacing,
    from_strength,
    sampling_times,
    shift_time,
    spacing,
    unshift_time,
)

DOUBLE = torch.float64


def drawn(n: int = 20000, **settings: Any) -> Tensor:
    return draw(n, generator(0, 0, "t"), **settings)


def distance(sample: Tensor, cumulative: Tensor) -> float:
    """Kolmogorov's distance of a sorted sample to a distribution given at its points."""
    return (cumulative - (torch.arange(len(sample)) + 0.5) / len(sample)).abs().max().item()


def test_the_shifted_table_is_that_of_diffusers() -> None:
    b = torch.arange(1000, 0, -1) / 1000
    table = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas
    assert (shift_time(b, 3.0) - table).abs().max() < 1e-7
    for index, value in {0: 1.0, 20: 0.9932, 300: 0.875, 500: 0.75, 700: 0.5625, 980: 0.0577, 999: 0.0030}.items():
        assert shift_time(b, 3.0)[index].item() == pytest.approx(value, abs=5e-5)


def test_the_shift_by_one_is_the_identity_and_the_unshift_its_inverse() -> None:
    b = torch.linspace(0, 1, 101, dtype=DOUBLE)
    assert torch.equal(shift_time(b, 1.0), b)
    assert torch.allclose(unshift_time(shift_time(b, 3.0), 3.0), b, atol=1e-12)
    assert torch.allclose(unshift_time(b, 3.0), shift_time(b, 1 / 3), atol=1e-12)
    assert shift_time(0.0, 3.0) == 0 and shift_time(1.0, 3.0) == 1 and shift_time(0.5, 3.0) == 0.75
    for shift in (0.0, -1.0):
        with pytest.raises(ValueError, match="shift"):
            shift_time(0.5, shift)
        with pytest.raises(ValueError, match="shift"):
            unshift_time(0.5, shift)


@pytest.mark.parametrize("law", ["uniform", "annealed", "logit_normal", "dreamtime"])
@pytest.mark.parametrize("shift", [1.0, 1.15, 3.0])
@pytest.mark.parametrize("window", [(0.0, 1.0), (0.02, 0.98), (0.5, 0.5), (0.0, 0.0)])
def test_a_draw_stays_in_its_window_and_depends_on_the_generator_only(
    law: Any, shift: float, window: tuple[float, float]
) -> None:
    settings = {"t_min": window[0], "t_max": window[1], "law": law, "shift": shift, "progress": 0.3, "width": 0.2}
    t = drawn(1000, **settings)
    assert t.shape == (1000,) and t.dtype == torch.float32
    low, high = torch.tensor(window)
    assert bool(((t >= low) & (t <= high)).all())
    assert torch.equal(t, drawn(1000, **settings))


def test_a_uniform_draw_is_uniform_in_its_window() -> None:
    t = drawn(t_min=0.2, t_max=0.9).sort().values
    assert distance(t, (t - 0.2) / 0.7) < 0.015


def test_the_shifted_window_of_the_reference_is_a_window_of_unshifted_times() -> None:
    t = drawn(t_min=shift_time(0.02, 3.0), t_max=shift_time(0.70, 3.0), shift=3.0).sort().values
    b = unshift_time(t.double(), 3.0)
    assert distance(t, (b - 0.02) / 0.68) < 0.015
    assert t.min().item() == pytest.approx(0.0577, abs=1e-3) and t.max().item() == pytest.approx(0.875, abs=1e-3)
    assert t.mean().item() == pytest.approx(0.578, abs=5e-3) and t.median().item() == pytest.approx(0.628, abs=5e-3)
    wide = drawn(t_min=shift_time(0.02, 3.0), t_max=shift_time(0.98, 3.0), shift=3.0)
    assert wide.mean().item() == pytest.approx(0.683, abs=5e-3) and wide.max().item() == pytest.approx(0.9932, abs=1e-3)


@pytest.mark.parametrize(("window", "shift"), [((0.0, 1.0), 1.0), ((0.1, 0.6), 1.0), ((0.1, 0.98), 3.0)])
def test_a_logit_normal_draw_is_the_normal_one_conditioned_on_the_window(
    window: tuple[float, float], shift: float
) -> None:
    t = drawn(t_min=window[0], t_max=window[1], law="logit_normal", shift=shift).sort().values
    logit = shift_time(torch.randn(100000, generator=torch.Generator().manual_seed(1)).sigmoid(), shift)
    accepted = logit[(logit >= window[0]) & (logit <= window[1])].sort().values
    assert distance(t, torch.searchsorted(accepted, t) / len(accepted)) < 0.02


@pytest.mark.parametrize("law", ["uniform", "logit_normal"])
def test_strata_share_the_law_among_them(law: Any) -> None:
    window: dict[str, Any] = {"t_min": 0.1, "t_max": 0.9, "law": law, "shift": 2.0}
    parts = drawn(40000, **window, strata=4).unflatten(0, (4, -1))
    assert bool((parts[:-1].amax(1) <= parts[1:].amin(1) + 1e-6).all())
    whole, free = parts.flatten().sort().values, drawn(40000, **window).sort().values
    assert distance(whole, torch.searchsorted(free, whole) / len(free)) < 0.015


def test_an_annealed_draw_falls_linearly_from_the_noisy_to_the_clean_end() -> None:
    for progress, centre in [(0.0, 0.98), (0.5, 0.61), (1.0, 0.24)]:
        t = drawn(10, t_min=0.24, t_max=0.98, law="annealed", progress=progress)
        assert torch.allclose(t, torch.full((10,), centre), atol=1e-6)
    band = drawn(t_min=0.24, t_max=0.98, law="annealed", progress=0.5, width=0.2).sort().values
    assert distance(band, (band - 0.51) / 0.2) < 0.015
    start = drawn(t_min=0.24, t_max=0.98, law="annealed", progress=0.0, width=0.2)
    assert start.min() > 0.879 and start.max() <= 0.98


def test_under_a_shift_the_falling_time_follows_the_path_of_the_shifted_sampler() -> None:
    path = FlowMatchEulerDiscreteScheduler(shift=3.0)
    path.set_timesteps(sigmas=[1 - k / 10 for k in range(10)])
    falling = [drawn(1, t_min=0.0, t_max=1.0, law="annealed", shift=3.0, progress=k / 10) for k in range(10)]
    assert torch.allclose(torch.cat(falling), path.sigmas[:-1], atol=1e-6)


STABLE = DiscreteVP(betas("scaled_linear", 1000))


def dreamtime_weight(t: float, schedule: Any) -> float:
    level = schedule(torch.tensor([t], dtype=DOUBLE))
    bump = math.exp(-((t - 0.8) ** 2) / 0.18) if t > 0.8 else math.exp(-((t - 0.5) ** 2) / 0.02) if t < 0.5 else 1.0
    return float(level.sigma / level.alpha) * bump


@pytest.mark.parametrize("schedule", [rectified_flow, STABLE])
def test_dreamtime_spends_on_every_time_a_share_of_the_run_proportional_to_its_weight(schedule: Any) -> None:
    window = {"t_min": 0.02, "t_max": 0.98}
    shares = torch.linspace(0, 1, 21, dtype=DOUBLE)
    times = [dreamtime_at(float(share), **window, schedule=schedule) for share in shares]
    assert times[0] == pytest.approx(0.98) and times[-1] == pytest.approx(0.02, abs=0.05)
    assert all(a > b for a, b in pairwise(times))
    grid = [0.98 - 0.96 * (i + 0.5) / 20000 for i in range(20000)]
    weights = torch.tensor([dreamtime_weight(t, schedule) for t in grid], dtype=DOUBLE)
    for share, time in zip(shares, times, strict=True):
        before = weights[torch.tensor(grid, dtype=DOUBLE) > time].sum() / weights.sum()
        assert before.item() == pytest.approx(float(share), abs=2e-3)


def test_a_dreamtime_draw_is_its_time_and_a_band_lies_around_it() -> None:
    window: dict[str, Any] = {"t_min": 0.1, "t_max": 0.9, "law": "dreamtime", "progress": 0.4, "schedule": STABLE}
    centre = dreamtime_at(0.4, t_min=0.1, t_max=0.9, schedule=STABLE)
    assert torch.allclose(drawn(10, **window), torch.full((10,), centre), atol=1e-6)
    band = drawn(**window, width=0.2).sort().values
    assert distance(band, (band - centre + 0.1) / 0.2) < 0.015
    assert dreamtime_at(0.5, t_min=0.01, t_max=0.02, bump=(0.8, 0.5, 0.3, 0.001)) < 0.02


def test_bad_settings_of_a_draw_raise() -> None:
    good: dict[str, Any] = {"t_min": 0.1, "t_max": 0.9}
    bad: list[dict[str, Any]] = [
        {"t_min": 0.95},
        {"t_min": -0.1},
        {"t_max": 1.1},
        {"t_max": math.nan},
        {"law": "normal"},
        {"progress": 1.5},
        {"width": -0.1},
        {"shift": 0.0},
        {"law": "dreamtime", "bump": (0.5, 0.8, 0.3, 0.1)},
        {"law": "dreamtime", "bump": (0.8, 0.5, 0.3, 0.0)},
        {"strata": 3},
        {"strata": 0},
    ]
    for change in bad:
        with pytest.raises(ValueError, match="expected"):
            drawn(2, **(good | change))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_spacing_goes_from_end_to_end_evenly_before_the_shift(shift: float) -> None:
    times = spacing(7, t_start=0.9, t_end=0.1, shift=shift)
    assert times.shape == (8,) and times.dtype == torch.float32
    assert times[0] == torch.tensor(0.9) and times[-1] == torch.tensor(0.1)
    gaps = unshift_time(times.double(), shift).diff()
    assert torch.allclose(gaps, gaps[0].expand(7), atol=1e-6) and bool((gaps < 0).all())


def test_rising_spacings_are_the_falling_ones_reversed_and_reach_the_exact_ends() -> None:
    assert torch.allclose(spacing(9, t_start=0.0, t_end=1.0, shift=3.0).flip(0), spacing(9, shift=3.0))
    assert spacing(28, shift=3.0)[0] == 1 and spacing(28, shift=3.0)[-1] == 0
    for steps, start in [(0, 1.0), (3, 1.5)]:
        with pytest.raises(ValueError, match="expected"):
            spacing(steps, t_start=start)


@pytest.mark.parametrize("steps", [1, 2, 15, 28])
def test_the_foreign_spacing_is_that_of_flow_matching_euler_of_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    times = flow_match_spacing(steps, shift=3.0)
    assert torch.allclose(times, scheduler.sigmas, atol=1e-6) and times[-1] == 0
    assert torch.allclose(1000 * times[:-1], scheduler.timesteps, atol=1e-3)


def test_the_smallest_foreign_time_is_shifted_twice() -> None:
    assert 1000 * flow_match_spacing(15, shift=3.0)[-2].item() == pytest.approx(8.93, abs=5e-3)


@pytest.mark.parametrize("law", ["uniform", "trailing", "quad"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 1000])
def test_ddim_makes_exactly_as_many_steps_as_asked_for_inside_the_table(law: Any, n: int) -> None:
    for steps in range(1, n + 1, 1 if n < 100 else 7):
        numbers = ddim_steps(steps, n, law=law)
        assert len(numbers) == steps and numbers[0] >= 1 and numbers[-1] <= n
        assert bool((numbers.diff() > 0).all())


@pytest.mark.parametrize("steps", [3, 7, 30, 50, 999, 1000])
@pytest.mark.parametrize(("spacing_name", "law", "offset"), [("leading", "uniform", 0), ("leading", "uniform", 1)])
def test_step_numbers_are_the_leading_ones_of_diffusers(steps: int, spacing_name: str, law: Any, offset: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing_name, steps_offset=offset)
    scheduler.set_timesteps(steps)
    if int(scheduler.timesteps[0]) >= 1000:
        with pytest.raises(ValueError, match=r"expected 1\.\.1000"):
            ddim_steps(steps, 1000, law=law, offset=offset)
    else:
        assert torch.equal(ddim_steps(steps, 1000, law=law, offset=offset).flip(0) - 1, scheduler.timesteps)


@pytest.mark.parametrize("steps", [1, 3, 7, 8, 30, 1000])
def test_trailing_step_numbers_are_those_of_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert torch.equal(ddim_steps(steps, 1000, law="trailing").flip(0) - 1, scheduler.timesteps)


@pytest.mark.parametrize("steps", [61, 122, 206])
def test_trailing_keeps_the_number_of_steps_where_diffusers_adds_one_below_the_table(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert (len(scheduler.timesteps), scheduler.timesteps.min()) == (steps + 1, -1)
    ours = ddim_steps(steps, 1000, law="trailing").flip(0) - 1
    assert len(ours) == steps and torch.equal(ours, scheduler.timesteps[:-1])


@pytest.mark.parametrize(("steps", "theirs"), [(30, 31), (7, 8), (3, 4)])
def test_we_keep_the_number_of_steps_where_latent_diffusion_does_not(steps: int, theirs: int) -> None:
    assert len(range(0, 1000, 1000 // steps)) == theirs
    assert len(ddim_steps(steps, 1000)) == steps


def test_quadratic_steps_are_dense_near_clean() -> None:
    numbers = ddim_steps(10, 1000, law="quad")
    expected = [int(value**2 + 1e-9) + 1 for value in torch.linspace(0, 800**0.5, 10, dtype=DOUBLE).tolist()]
    assert numbers.tolist() == expected and bool((numbers.diff().diff() > 0).all())


def test_ddim_times_fall_to_zero_and_find_their_step_again() -> None:
    times = ddim_times(7, 1000, offset=1)
    assert times.shape == (8,) and times[-1] == 0 and bool((times.diff() < 0).all())
    assert torch.equal((times[:-1] * 1000).round().long(), ddim_steps(7, 1000, offset=1).flip(0))
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="expected"):
            ddim_times(steps, 1000)
    with pytest.raises(ValueError, match="got law"):
        ddim_steps(3, 10, law="cubic")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [3, 7, 20, 30, 999, 1000])
def test_the_times_of_a_sampler_are_those_of_its_spacing_and_leading_gives_way_where_the_offset_leaves_the_table(
    steps: int,
) -> None:
    fits = (steps - 1) * (1000 // steps) + 2 <= 1000
    assert torch.equal(sampling_times(steps, law="leading"), ddim_times(steps, 1000, offset=int(fits)))
    assert torch.equal(sampling_times(steps, law="leading", offset=0), ddim_times(steps, 1000))
    for law in ("trailing", "linspace", "quad"):
        assert torch.equal(sampling_times(steps, law=law), ddim_times(steps, 1000, law=law))
    assert torch.equal(sampling_times(steps, law="even", shift=3.0), spacing(steps, shift=3.0))
    assert torch.equal(sampling_times(steps, law="flow_match", shift=3.0), flow_match_spacing(steps, shift=3.0))
    with pytest.raises(ValueError, match="got law"):
        sampling_times(steps, law="uniform")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [1, 5, 20, 1000])
@pytest.mark.parametrize("strength", [0.04, 0.35, 0.75, 1.0])
def test_a_start_from_a_picture_has_the_steps_of_diffusers_pipelines(steps: int, strength: float) -> None:
    times = spacing(steps)
    stable = steps - max(steps - min(int(steps * strength), steps), 0)
    flow = steps - int(max(steps - min(steps * strength, steps), 0))
    for kept, up in ((stable, False), (flow, True)):
        if kept:
            assert torch.equal(from_strength(times, strength, up=up), times[steps - kept :])
        else:
            with pytest.raises(ValueError, match="leaves none"):
                from_strength(times, strength, up=up)
    with pytest.raises(ValueError, match="got strength"):
        from_strength(times, 1.1)
