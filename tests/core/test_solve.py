"""Solvers.

Oracles, whole trajectories: diffusers' DDIMScheduler with eta 0, 0.5 and 1, for eps, v and x0, with both final levels,
FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler with shift 3. They fail when the row of v or flow is
negated, when `noise` exchanges alpha and sigma, when the split is done at the level of t_next, when `final` is ignored
and, with eta above 0, when the kept noise is not reduced by the fresh one, when the fresh noise is the deviation of
q(x_t | x_s), when eta is squared.
The closed forms fail when the midpoint uses its first prediction twice or skips the bridge, and when Heun's second
velocity is taken at the old level or weighs 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import Tensor
from transport import transported

from threestudio_rf.core.convert import KINDS, Kind, join, split
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, betas, column, rectified_flow, to_straight
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.core.solve import Rule
from threestudio_rf.core.times import ddim_times, flow_match_spacing, spacing

DOUBLE = torch.float64
Make = Callable[..., Any]


def stable(final: Literal["clean", "first"] = "clean") -> DiscreteVP:
    return DiscreteVP(betas("scaled_linear", 1000, start=0.00085, end=0.012), final=final)


def gaussian(shape: tuple[int, ...] = (3, 2, 4, 5), dtype: torch.dtype = DOUBLE) -> Tensor:
    """Noise; the batch differs from the width."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def even(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=DOUBLE)


def end(states: Any) -> Tensor:
    return list(states)[-1]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of both."""
    return torch.sin(2 * x) * column(1 + t, x)


@pytest.mark.parametrize("final", ["clean", "first"])
@pytest.mark.parametrize(("kind", "name"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_run_is_that_of_ddim_of_diffusers(final: Any, kind: Kind, name: str, eta: float) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=final == "clean",
        steps_offset=1,
        prediction_type=name,
    )
    scheduler.set_timesteps(7)
    ours = theirs = gaussian(dtype=torch.float32)
    times, table = ddim_times(7, 1000, offset=1), stable(final)
    settings: dict[str, Any] = {"schedule": table, "kind": kind}
    if eta == 0:
        states = solve(Field(network, **settings), ours, times)
    else:
        states = solve(Field(network, **settings), ours, times, generator=generator(0, 0, "z"), rule=Rule("ddim", eta))
    draws = generator(0, 0, "z")
    for k, ours in zip(scheduler.timesteps, states, strict=True):
        p = network(theirs, (k + 1).expand(3) / 1000)
        theirs = scheduler.step(p, int(k), theirs, eta=eta, generator=draws).prev_sample
        assert torch.allclose(ours, theirs, atol=2e-4)
    assert len(scheduler.timesteps) == 7


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_a_run_is_that_of_flow_matching_euler_of_diffusers_with_shift_three(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    theirs = gaussian(dtype=torch.float32)
    times = flow_match_spacing(steps, shift=3.0)
    states = solve(Field(network, "flow", rectified_flow), theirs, times)
    for label, ours in zip(scheduler.timesteps, states, strict=True):
        theirs = scheduler.step(network(theirs, label.expand(3) / 1000), label, theirs).prev_sample
        assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 4, 15])
def test_a_run_of_heun_is_that_of_flow_matching_heun_of_diffusers(steps: int) -> None:
    scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    theirs = gaussian(dtype=torch.float32)
    states = list(
        solve(Field(network, "flow", rectified_flow), theirs, flow_match_spacing(steps, shift=3.0), rule=Rule("heun"))
    )
    for number, label in enumerate(scheduler.timesteps, 1):
        theirs = scheduler.step(network(theirs, label.expand(3) / 1000), label, theirs).prev_sample
        if scheduler.state_in_first_order:
            assert torch.allclose(states[number // 2 - 1], theirs, atol=2e-5)
    assert number == 2 * steps - 1 and torch.allclose(states[-1], theirs, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_the_straight_path_is_eulers(kind: Kind) -> None:
    x, times = gaussian(), even(0.9, 0.1, 4)
    states = solve(Field(network, kind, rectified_flow), x, times)
    for t, t_next, state in zip(times, times[1:], states, strict=False):
        level = rectified_flow(t.expand(3))
        u = join("flow", *split(kind, network(x, t.expand(3)), x, level), level)
        x = x + (t_next - t) * u
        assert torch.allclose(state, x, atol=1e-11)


def test_ddim_is_bridge_euler_and_bridge_back() -> None:
    table, x = stable(), gaussian()
    times = ddim_times(9, 1000).double()
    states = solve(Field(network, "eps", table), x, times)
    for t, t_next, state in zip(times, times[1:], states, strict=False):
        now, after = table(t.expand(3)), table(t_next.expand(3))
        (there, scale), (there_next, scale_next) = to_straight(now), to_straight(after)
        x0_hat, eps_hat = split("eps", network(x, t.expand(3)), x, now)
        straight = x / column(scale, x) + column(there_next - there, x) * (eps_hat - x0_hat)
        x = straight * column(scale_next, x)
        assert torch.allclose(state, x, atol=1e-11)


def cosine(t: Tensor) -> Level:
    """A smooth variance-preserving path whose middle of time is not its middle behind the bridge."""
    angle = t * math.pi / 2
    return Level(angle.cos(), angle.sin())


PATHS = [(rectified_flow, "flow"), (rectified_flow, "x0"), (cosine, "v"), (cosine, "eps")]
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "fireflow": 2, "dpmpp_2m": 2}


@pytest.mark.parametrize(("schedule", "kind"), PATHS)
@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
@pytest.mark.parametrize(("start", "stop"), [(0.9, 0.2), (0.2, 0.9)], ids=["sample", "invert"])
def test_the_measured_order_is_the_declared_one(
    solver: Any, order: int, schedule: Schedule, kind: Kind, start: float, stop: float, make_mixture: Make
) -> None:
    mixture = make_mixture([[-0.5], [1.0]], 0.4)
    x = torch.tensor([[-1.0], [-0.2], [0.1], [0.9]], dtype=DOUBLE)
    now, after = (schedule(torch.tensor([t], dtype=DOUBLE)) for t in (start, stop))
    truth = transported(mixture, x, now, after)
    field = Field(mixture.field(kind, schedule), kind, schedule)
    error = [
        (end(solve(field, x, even(start, stop, steps), rule=Rule(solver))) - truth).square().mean().sqrt()
        for steps in (24, 48)
    ]
    assert error[1] < 0.02
    assert torch.log2(error[0] / error[1]).item() == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("schedule", "kind"), [PATHS[0], PATHS[2]])
@pytest.mark.parametrize(("solver", "order"), ORDERS.items())
def test_sampling_after_inverting_comes_back_as_steps_grow(
    solver: Any, order: int, schedule: Schedule, kind: Kind, make_mixture: Make
) -> None:
    field = make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.3)
    field = Field(field.field(kind, schedule), kind, schedule)
    x = torch.tensor([[-1.2, 0.5], [0.8, 0.0], [1.1, 0.3]], dtype=DOUBLE)

    def gap(steps: int) -> float:
        up = end(solve(field, x, even(0.0, 0.9, steps), rule=Rule(solver)))
        return (end(solve(field, up, even(0.9, 0.0, steps), rule=Rule(solver))) - x).abs().max().item()

    coarse, fine = gap(20), gap(80)
    assert fine < coarse / 3**order and fine < 0.05


def test_ddim_reverse_of_a_table_round_trips(make_mixture: Make) -> None:
    table = stable()
    field = make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.3).field("eps", table)
    x = torch.tensor([[-1.2, 0.5], [0.8, 0.0], [1.1, 0.3]], dtype=DOUBLE)
    times = ddim_times(100, 1000).double()
    up = end(solve(Field(field, "eps", table), x, times.flip(0)[:-10]))
    assert (end(solve(Field(field, "eps", table), up, times[10:])) - x).abs().max() < 0.03


def test_heun_asks_no_network_about_clean_data_and_once_less_than_twice_per_step() -> None:
    asked: list[float] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return network(x, t)

    end(solve(Field(watched, "flow", rectified_flow), gaussian(), even(1.0, 0.0, 4), rule=Rule("heun")))
    assert asked == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]


def test_rf_solver_with_half_a_step_of_finite_difference_is_the_midpoint_rule() -> None:
    x, times = gaussian(), even(0.95, 0.0, 5)
    states = solve(Field(network, "flow", rectified_flow), x, times, rule=Rule("midpoint"))
    for t, t_next, state in zip(times, times[1:], states, strict=False):
        h = t_next - t
        u = network(x, t.expand(3))
        derivative = (network(x + h / 2 * u, (t + h / 2).expand(3)) - u) / (h / 2)
        x = x + h * u + h**2 / 2 * derivative
        assert torch.allclose(state, x, atol=1e-11)


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("kind", ["v", "flow"])
def test_a_straight_run_starts_at_pure_noise_and_ends_clean(solver: Any, kind: Kind, make_mixture: Make) -> None:
    mixture = make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.02)
    x = gaussian((64, 2))
    field = Field(mixture.field(kind, rectified_flow), kind, rectified_flow)
    run = solve(field, x, spacing(40), rule=Rule(solver))
    final = end(run)
    assert bool(final.isfinite().all())
    assert (final[:, None] - mixture.means).norm(dim=-1).min(1).values.max() < 0.2


def test_the_last_step_to_time_zero_is_the_prediction_itself() -> None:
    x = gaussian()
    for schedule in (rectified_flow, stable()):
        times = torch.tensor([0.3, 0.0], dtype=DOUBLE)
        level = schedule(times[:1].expand(3))
        (state,) = solve(Field(network, "eps", schedule), x, times)
        assert torch.allclose(state, split("eps", network(x, times[:1].expand(3)), x, level)[0], atol=1e-12)


def test_noise_predictions_at_pure_noise_and_data_predictions_of_clean_data_raise() -> None:
    with pytest.raises(ValueError, match="eps says nothing"):
        end(solve(Field(network, "eps", rectified_flow), gaussian(), spacing(3)))
    with pytest.raises(ValueError, match="x0 says nothing"):
        end(solve(Field(network, "x0", rectified_flow), gaussian(), spacing(3).flip(0)))


@pytest.mark.parametrize("solver", ORDERS)
def test_times_may_differ_per_sample(solver: Any) -> None:
    x = gaussian()
    starts = torch.tensor([0.9, 0.5, 0.3], dtype=DOUBLE)
    times = torch.linspace(1, 0, 5, dtype=DOUBLE)[:, None] * starts
    together = end(solve(Field(network, "flow", rectified_flow), x, times, rule=Rule(solver)))
    for i in range(3):
        alone = end(solve(Field(network, "flow", rectified_flow), x[i : i + 1], times[:, i], rule=Rule(solver)))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-12)


@pytest.mark.parametrize("times", [torch.tensor(0.5), torch.tensor([0.5]), torch.ones(4, 5), torch.ones(4, 3, 1)])
def test_times_of_another_shape_raise(times: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected \(S \+ 1,\)"):
        end(solve(Field(network, "flow", rectified_flow), gaussian(), times))


def test_a_solver_yields_one_state_per_step_and_keeps_the_precision_of_x() -> None:
    for dtype in (torch.float32, DOUBLE):
        states = list(solve(Field(network, "flow", rectified_flow), gaussian(dtype=dtype), spacing(5)))
        assert len(states) == 5 and all(state.dtype == dtype for state in states)
