"""The bridge to the straight path, and the times of an edit.

Oracle: the closed-form mixture asked on its own path, core's solver.

Seen to fail: x not scaled on the way to the network -> the first two; the velocity joined on the prior's path with the
weights of x0 -> the first; roles of guidance exchanged -> guidance; t' of a table's end instead of 0 -> the clean end;
a table's times counted in t instead of t', a shift ignored -> times.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import DiscreteVP, betas, column, rectified_flow, to_straight
from threestudio_rf.core.model import Field
from threestudio_rf.core.sample import solve
from threestudio_rf.core.times import falling_times, noisiest, spacing

DOUBLE = torch.float64
TABLE = DiscreteVP(betas("scaled_linear", 1000))


@pytest.mark.parametrize("name", ["flow", "eps", "v", "smooth eps", "smooth v"])
def test_every_prior_has_the_velocity_of_the_straight_one_at_the_same_noise_level(name: str, make_path: Any) -> None:
    path, straight = make_path(name), make_path("flow")
    x = torch.randn(5, 1, 1, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=DOUBLE)
    level = path.level(t)
    assert torch.allclose(level.alpha + level.sigma, torch.ones(5, dtype=DOUBLE), atol=1e-12)
    for role, scale in (("source", 1.0), ("target", 4.0)):
        wanted = straight.velocity(role, scale)(x, level.sigma)
        assert torch.allclose(path.velocity(role, scale)(x, t), wanted, atol=1e-11)


@pytest.mark.parametrize("name", ["eps", "smooth v"])
def test_euler_behind_the_bridge_is_ddim_on_the_priors_own_path(name: str, make_path: Any) -> None:
    path = make_path(name)
    times = torch.tensor([0.9, 0.7, 0.4, 0.2, 0.1], dtype=DOUBLE)
    x_t = torch.randn(3, 1, 1, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return path.model(x, t, ["source"])["source"]

    def scale(t: torch.Tensor) -> torch.Tensor:
        return column(to_straight(path.schedule(t.expand(3)))[1], x_t)

    own = solve(Field(field, path.model.kind, path.schedule), x_t, times)
    moved = solve(path.velocity("source", 1.0), x_t / scale(times[0]), times)
    for t, one, other in zip(times[1:], own, moved, strict=True):
        assert torch.allclose(one, other * scale(t), atol=1e-11)


def test_guidance_asks_for_its_role_and_costs_two_calls(make_path: Any) -> None:
    path, x, t = make_path("flow"), torch.zeros(2, 1, 1, 2, dtype=DOUBLE), torch.full((2,), 0.5, dtype=DOUBLE)
    parts = path.model(x, t, ["target", "uncond"])
    before = path.model.calls
    guided = path.velocity("target", 3.0)(x, t)
    assert path.model.calls == before + 2
    assert torch.allclose(guided, parts["uncond"] + 3 * (parts["target"] - parts["uncond"]), atol=1e-12)
    assert torch.equal(path.velocity("target", 1.0)(x, t), parts["target"])
    assert path.model.calls == before + 3


@pytest.mark.parametrize("name", ["flow", "eps", "v"])
def test_a_picture_is_clean_at_time_zero(name: str, make_path: Any) -> None:
    path, x = make_path(name), torch.ones(2, 1, 1, 2, dtype=DOUBLE)
    level = path.level(torch.zeros(2, dtype=DOUBLE))
    assert torch.equal(noise(x, 7 * x, level), x)
    assert bool(path.velocity("source", 1.0)(x, torch.zeros(2, dtype=DOUBLE)).isfinite().all())


def test_times_fall_from_the_stated_noise_level_to_clean(make_path: Any) -> None:
    assert torch.equal(falling_times(rectified_flow, 6), spacing(6))
    assert torch.equal(falling_times(rectified_flow, 4, t_start=0.8, shift=3.0), spacing(4, t_start=0.8, shift=3.0))
    assert noisiest(rectified_flow) == 1 and noisiest(TABLE) == pytest.approx(0.936, abs=1e-3)
    for name in ("smooth eps", "smooth v"):
        smooth = make_path(name)
        times = falling_times(smooth.schedule, 8, t_start=0.6, shift=2.0).double()
        assert torch.allclose(smooth.level(times).sigma, spacing(8, t_start=0.6, shift=2.0).double(), atol=1e-6)
        assert torch.allclose(smooth.level(smooth.time(times[:3])).sigma, times[:3], atol=1e-9)
    path = make_path("eps")
    for level in (0.3, 0.7, None):
        times = falling_times(TABLE, 7, t_start=level)
        assert times.shape == (8,) and times[-1] == 0 and bool((times.diff() < 0).all())
        wanted = noisiest(TABLE) if level is None else level
        assert path.level(times[:1]).sigma.item() == pytest.approx(wanted, abs=1e-3)
        assert torch.allclose(times * 1000, (times * 1000).round(), atol=1e-4)
    straight = torch.tensor([0.3, 0.6])
    assert torch.allclose(path.level(path.time(straight)).sigma, straight, atol=1e-3)
    assert torch.equal(make_path("flow").time(straight), straight)


@pytest.mark.parametrize(
    ("schedule", "steps", "settings", "message"),
    [
        (rectified_flow, 5, {"t_start": 1.1}, r"in 0\.\.1\.000"),
        (rectified_flow, 5, {"t_start": 0.0}, "got 5 steps from t_start 0"),
        (rectified_flow, 0, {}, "expected at least 1"),
        (TABLE, 5, {"t_start": 1.0}, r"in 0\.\.0\.936"),
        (TABLE, 5, {"shift": 3.0}, "those of a table"),
        (TABLE, 40, {"t_start": 0.05}, "expected at most"),
    ],
)
def test_times_that_a_prior_does_not_have_raise(schedule: Any, steps: int, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        falling_times(schedule, steps, **settings)
