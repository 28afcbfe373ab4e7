"""The stops of a run.

Oracles: diffusers' DPMSolverMultistepScheduler with Karras and exponential sigmas, whole runs; the closed-form mixture
behind a bisection of its distribution function.

Seen to fail: the last two estimates exchanged or their factor left out (order 1); the levels of the table's entries in
place of the ratios; labels not rounded; a start that is not the noisiest entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from transport import transported

from threestudio_rf.core.grid import Grid, grid_of, ratio_grid, ratios
from threestudio_rf.core.level import Continuous, DiscreteVP, Level, betas, column, rectified_flow, zero_terminal
from threestudio_rf.core.model import Field
from threestudio_rf.core.sample import solve
from threestudio_rf.core.solve import SECOND, Rule

DOUBLE = torch.float64
TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")
STABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SMOOTH = Continuous(lambda t: Level((t * math.pi / 2).cos(), (t * math.pi / 2).sin()))
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
Make = Callable[..., Any]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of both."""
    return torch.sin(2 * x) * column(1 + t, x).to(x)


def gaussian(shape: tuple[int, ...] = (3, 2, 4, 5), dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def end(run: Any) -> Any:
    return list(run)[-1]


@pytest.mark.parametrize("law", ["karras", "exponential"])
@pytest.mark.parametrize("kind", NAMES)
def test_dpmpp_2m_through_the_ratios_of_a_law_is_that_of_diffusers(law: str, kind: Any) -> None:
    scheduler = DPMSolverMultistepScheduler(**STABLE, prediction_type=NAMES[kind], **{f"use_{law}_sigmas": True})
    scheduler.set_timesteps(8)
    grid, x = grid_of(TABLE, 8, law=law), gaussian()
    assert grid.heard is not None and (grid.heard[:-1] * 1000 - 1 - scheduler.timesteps).abs().max() < 1.1
    if law == "karras":  # exponential labels are cut there, not rounded
        assert torch.equal((grid.heard[:-1] * 1000 - 1).round().long(), scheduler.timesteps)
    labels = (scheduler.timesteps + 1).double() / 1000
    grid = Grid(grid.times, torch.cat([labels, labels.new_zeros(1)]), grid.level)
    run = solve(grid.along(Field(network, kind, TABLE)), x, grid.times, rule=Rule("dpmpp_2m"))
    for k, state in zip(scheduler.timesteps, run, strict=True):
        x = scheduler.step(network(x, (k + 1).expand(3).double() / 1000), k, x).prev_sample
        assert torch.allclose(state, x, rtol=1e-4, atol=1e-4)
        x = state


@pytest.fixture
def error(make_mixture: Make) -> Callable[..., float]:
    """error(sampler, times, path): root mean square over a few samples of a mixture in one dimension."""
    mixture = make_mixture([[-0.5], [1.0]], 0.3)
    x = torch.tensor([[-1.5], [-0.6], [0.1], [0.9], [1.7]], dtype=DOUBLE)

    def found(sampler: str, times: Tensor, schedule: Any) -> float:
        times = times.double()
        wanted = transported(mixture, x, schedule(times[:1]), schedule(times[-1:]))
        run = solve(Field(mixture.field("v", schedule), "v", schedule), x, times, rule=Rule(sampler))
        return float((end(run) - wanted).square().mean().sqrt())

    return found


PATHS = pytest.mark.parametrize("schedule", [SMOOTH, rectified_flow], ids=["vp", "straight"])


@PATHS
def test_dpmpp_2m_is_of_order_two_through_karras_ratios(schedule: Any, error: Callable[..., float]) -> None:
    coarse, fine = (
        error("dpmpp_2m", ratio_grid(schedule, ratios(n, 0.05, 20.0, law="karras")).times[:-1], schedule)
        for n in (60, 120)
    )
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.3) and fine < 0.001


@pytest.mark.parametrize("sampler", SECOND)
def test_a_sampler_of_order_two_on_its_own_grid_is_better_than_euler_at_equal_calls(
    sampler: str, error: Callable[..., float]
) -> None:
    steps = {"heun": 10, "midpoint": 10, "fireflow": 19}.get(sampler, 20)
    for schedule in (SMOOTH, rectified_flow):
        own = grid_of(schedule, steps, sampler=sampler).times
        assert error(sampler, own, schedule) < error("euler", grid_of(schedule, 20).times, schedule)
    assert grid_of(TABLE, steps, sampler=sampler).level is not None, "on a table too"
    assert grid_of(rectified_flow, steps, sampler=sampler).times[0] == 1
    assert grid_of(DiscreteVP(zero_terminal(TABLE.betas)), steps, sampler=sampler).times[0] > 0.999


def test_a_grid_tells_the_network_its_labels_and_has_its_own_levels_at_its_stops_only() -> None:
    asked: list[float] = []

    def ask(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return x

    level = Level(torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.0]))
    grid = Grid(torch.tensor([0.8, 0.0]), torch.tensor([0.79, 0.0], dtype=DOUBLE), level)
    field = grid.along(Field(ask, "eps", TABLE))
    assert field.schedule.table is TABLE and field.schedule(torch.tensor([0.8])) == (0.5, 0.25)
    for t in (0.8, 0.4):
        field(gaussian(), torch.full((3,), t))
    assert asked == pytest.approx([0.79, 0.4])
    assert torch.equal(field.schedule(torch.tensor([0.4])).alpha, TABLE(torch.tensor([0.4])).alpha)


def test_a_clean_picture_is_inverted_through_a_grid_also_by_a_prior_that_predicts_it(make_mixture: Make) -> None:
    mixture = make_mixture([[-0.5], [1.0]], 0.3)
    x0, grid = torch.tensor([[-0.7], [0.2], [1.1]], dtype=DOUBLE), grid_of(TABLE, 30, law="karras")
    ends = []
    for kind in ("x0", "v"):
        field = grid.along(Field(mixture.field(kind, TABLE), kind, TABLE))  # type: ignore[arg-type]
        up = end(solve(field, x0, grid.times.flip(0), rule=Rule("dpmpp_2m")))
        ends.append(up)
        assert (end(solve(field, up, grid.times, rule=Rule("dpmpp_2m"))) - x0).abs().max() < 0.1
    assert (ends[0] - ends[1]).abs().max() < 0.1


def test_laws_that_a_path_does_not_have_raise() -> None:
    for bad in ({"law": "cosine"}, {"law": "karras", "low": 0.0}, {"law": "karras", "low": 3.0}):
        with pytest.raises(ValueError, match="expected one of karras, exponential"):
            ratios(4, **{"low": 0.1, "high": 2.0, "law": "karras"} | bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got law 'sideways'"):
        grid_of(TABLE, 4, law="sideways")
