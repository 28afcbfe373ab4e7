"""iRFDS: its loss, its fixed point, its starts and its window.

Seen to fail: moments over the whole batch, variance with n - 1 -> the penalty; u with the other sign, x0 left out ->
the fixed point; the rate of sgd not that of the step -> the Rev step; the window in the prior's t, one t for the whole
batch -> the window; a continuous t, the smallest time left out -> the times of a sampler; init "image" that draws, an
inversion to half the noise -> the starts; accumulation without its mean -> accumulation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from threestudio_rf.core.convert import noise
from threestudio_rf.core.random import generator
from threestudio_rf.core.times import falling_times
from threestudio_rf.edit.invert import Ode, up
from threestudio_rf.edit.irfds import IRFDS, explain, misfit
from threestudio_rf.edit.method import METHODS
from threestudio_rf.edit.path import Path

DOUBLE = torch.float64
AT_ONE_LEVEL = IRFDS(accumulate=1, t_min=0.6, t_max=0.6, penalty=0.0)


def wanted(path: Path, x0: torch.Tensor, eps: torch.Tensor, straight: float = 0.6) -> torch.Tensor:
    """x0 + u_hat at the noise level of `AT_ONE_LEVEL`."""
    t = path.time(torch.full((len(x0),), straight))
    return x0 + path.velocity("source", 1.0)(noise(x0, eps, path.level(t)), t)


def test_the_penalty_vanishes_iff_every_sample_has_mean_zero_and_variance_one() -> None:
    eps = torch.randn(3, 2, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    flat = eps.flatten(1)
    good = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).reshape(eps.shape)
    assert misfit(good, good, penalty=1.0).abs().max() < 1e-20
    moved = torch.stack([good[0] + 0.5, good[1] * 2, good[2]])
    assert torch.allclose(misfit(moved, moved, penalty=2.0), torch.tensor([0.5, 18.0, 0.0], dtype=DOUBLE), atol=1e-12)
    balanced = torch.cat([good[:1] + 0.5, good[:1] - 0.5])
    assert misfit(balanced, balanced, penalty=1.0).min() > 0.2, "each sample for itself"
    assert torch.allclose(misfit(good, good + 3, penalty=1.0), torch.full((3,), 9.0, dtype=DOUBLE))


@pytest.mark.parametrize("name", ["flow", "eps", "v"])
def test_the_search_ends_where_the_noise_is_picture_plus_velocity(
    name: str, make_path: Any, reds: Any, end: Any
) -> None:
    path = make_path(name, std=1.0)
    settings = replace(AT_ONE_LEVEL, steps=40, rate=1.0, optimiser="sgd")
    eps = end(explain(path, reds, settings, generator=generator(0, 0, "e")))
    assert torch.allclose(eps, wanted(path, reds, eps), atol=1e-6)
    adam = replace(settings, optimiser="adamw", rate=0.05, steps=60)
    states = list(explain(path, reds, adam, generator=[generator(0, i, "e") for i in range(5)]))
    gaps = [misfit(state.x, wanted(path, reds, state.x), penalty=0.0).mean() for state in (states[0], states[-1])]
    assert gaps[1] < 0.1 * gaps[0]


def test_a_gradient_step_on_the_noise_is_the_rev_step_of_that_size(make_path: Any, reds: Any) -> None:
    path = make_path()
    settings = replace(AT_ONE_LEVEL, steps=1, rate=0.4, optimiser="sgd")
    first, second = (state.x for state in explain(path, reds, settings, generator=generator(0, 0, "e")))
    assert torch.allclose(second, first + 0.4 * (wanted(path, reds, first) - first), atol=1e-12)


def test_accumulated_gradients_are_averaged(make_path: Any, reds: Any) -> None:
    path = make_path()
    one, many = (
        [
            state.x
            for state in explain(
                path,
                reds,
                replace(AT_ONE_LEVEL, steps=1, rate=0.4, optimiser="sgd", accumulate=n),
                generator=generator(0, 0, "e"),
            )
        ]
        for n in (1, 3)
    )
    assert torch.allclose(one[1], many[1], atol=1e-12) and path.model.calls == 4


def test_the_window_is_one_of_noise_levels_and_every_sample_draws_its_own(make_path: Any, reds: Any) -> None:
    path = make_path("eps")
    settings = replace(AT_ONE_LEVEL, steps=40, t_min=0.3, t_max=0.5)
    states = list(explain(path, reds, settings, generator=generator(0, 0, "e")))[1:]
    levels = torch.stack([path.level(state.t).sigma for state in states])
    assert 0.299 < levels.min() < 0.33 and 0.47 < levels.max() < 0.501
    assert bool((levels.std(1) > 0.005).all())


def test_t_is_one_of_the_times_of_a_sampler_where_they_are_counted(make_path: Any, reds: Any) -> None:
    """diffusers' scheduler of SD3 with 15 steps, as the reference draws t for SD3: each in 1 of 15."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(15)
    settings = replace(METHODS["irfds_sd3"], steps=90, accumulate=1)
    states = list(explain(make_path(), reds, settings, generator=generator(0, 0, "e")))[1:]
    drawn = torch.cat([state.t for state in states])
    gaps = (drawn[:, None] * 1000 - scheduler.timesteps).abs()
    assert gaps.min(1).values.max() < 1e-2
    counts = gaps.argmin(1).bincount(minlength=15)
    assert counts.min() > 15 and counts.max() < 50, "450 draws, 30 of each are expected"
    inside = replace(settings, t_min=0.5, t_max=0.9)
    assert {
        0.5 <= t <= 0.9
        for state in list(explain(make_path(), reds, inside, generator=generator(1, 0, "e")))[1:]
        for t in state.t.tolist()
    } == {True}


def test_the_search_starts_from_what_is_asked_for(make_path: Any, reds: Any, end: Any) -> None:
    path = make_path("v")
    starts = {
        init: end(
            explain(path, reds, IRFDS(init=init, steps=0, init_steps=32, t_start=0.8), generator=generator(4, 0, "e"))
        )
        for init in ("randn", "image", "inverted")
    }
    assert torch.equal(starts["image"], reds)
    assert torch.equal(starts["randn"], torch.randn(5, 1, 1, 2, generator=generator(4, 0, "e")).to(DOUBLE))
    ode = Ode("fireflow", steps=32)
    climbed = end(up(path, reds, falling_times(path.schedule, 32, t_start=0.8), ode, generator=generator(4, 0, "e")))
    level = path.level(path.time(torch.full((5,), 0.8)))
    assert torch.allclose(noise(reds, starts["inverted"], level), climbed, atol=1e-5)


def test_samples_are_searched_for_by_themselves_and_gradients_stay_as_they_were(make_path: Any, reds: Any) -> None:
    path, settings = make_path(), IRFDS(steps=5, rate=0.1)
    with torch.no_grad():
        *_, both = explain(path, reds[:2], settings, generator=[generator(0, i, "e") for i in range(2)])
        *_, alone = explain(path, reds[1:2], settings, generator=[generator(0, 1, "e")])
        assert not torch.is_grad_enabled()
    assert torch.allclose(both.x[1:], alone.x, atol=1e-12) and not both.x.requires_grad
    search = explain(path, reds, settings, generator=generator(0, 0, "e"))
    next(search), next(search)
    assert torch.is_grad_enabled()


def test_settings_of_no_use_raise() -> None:
    for given, message in (
        ({"init": "zeros"}, "expected one of randn, image"),
        ({"optimiser": "lion"}, "adamw, sgd"),
        ({"t_min": 0.9, "t_max": 0.2}, "expected 0 < t_min"),
        ({"t_min": 0.5, "t_max": 0.51, "t_count": 4}, "some of the 4 times of t_count"),
    ):
        with pytest.raises(ValueError, match=message):
            IRFDS(**given)
