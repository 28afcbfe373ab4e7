"""DirectEdit: exact at any number of steps, at the calls of Euler.

Seen to fail: the residual left out or with the other sign, the network asked under the lower time on the way down, the
trail in the other order, the source's prompt on the way down -> formula, exactness.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from threestudio_rf.core.level import column
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import keep
from threestudio_rf.edit.direct import Direct, ascend, descend
from threestudio_rf.edit.method import edit, resample

DOUBLE = torch.float64
NAMES = ["flow", "eps", "x0", "v"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_a_reconstruction_is_exact_at_any_number_of_steps(
    steps: int, name: str, make_path: Any, reds: Any, end: Any
) -> None:
    path, settings = make_path(name), Direct(steps=steps, shift=1.0)
    back = end(edit(path, reds, settings.faithful(), generator=generator(0, 0, "e"), role="source"))
    assert torch.allclose(back, reds, atol=1e-12) and path.model.calls == 2 * steps


@pytest.mark.parametrize("name", ["flow", "eps", "v"])
def test_an_edit_follows_the_formula(name: str, make_path: Any, reds: Any) -> None:
    path, settings = make_path(name), Direct(steps=6, scale=3.0)
    times = torch.linspace(0.9, 0, 7, dtype=DOUBLE)
    source, target = path.velocity("source", 1.0), path.velocity("target", 3.0)
    lows, residuals = [reds], []
    for s, t in pairwise(times.flip(0)[:, None].expand(-1, 5)):
        h = column(path.level(t).sigma - path.level(s).sigma, reds)
        residuals.append(-h * source(lows[-1], t))
        lows.append(lows[-1] - residuals[-1])
    climbed = list(ascend(path, reds, times, settings))
    assert all(torch.allclose(state.x, x, atol=1e-12) for state, x in zip(climbed, lows[1:], strict=True))
    assert [state.left for state in climbed] == [5, 4, 3, 2, 1, 0]
    x = lows[-1]
    found = descend(path, lows, times, settings, role="target")
    ways = zip(pairwise(times[:, None].expand(-1, 5)), reversed(residuals), found, strict=True)
    for (t, s), residual, state in ways:
        h = column(path.level(t).sigma - path.level(s).sigma, reds)
        u = target(x + residual, t)
        implied = x + residual - column(path.level(s).sigma, x) * u
        x = x - h * u
        assert torch.allclose(state.x, x, atol=1e-11) and torch.allclose(state.x0_hat, implied, atol=1e-11)


def test_with_many_steps_it_is_the_inversion_of_euler(make_path: Any, reds: Any, end: Any) -> None:
    from threestudio_rf.edit.invert import Ode

    path, gaps = make_path(std=1.0), []
    for steps in (20, 80):
        given = {"steps": steps, "scale": 2.0, "shift": 1.0, "t_start": 0.9}
        results = [
            end(edit(path, reds, one, generator=generator(0, 0, "e"))) for one in (Direct(**given), Ode(**given))
        ]
        gaps.append((results[0] - results[1]).abs().max())
    assert gaps[1] < 0.4 * gaps[0] and gaps[0] < 0.2


def test_what_changes_the_state_between_two_steps_is_heard(make_path: Any, reds: Any, end: Any) -> None:
    path, times = make_path(), torch.linspace(1, 0, 9, dtype=DOUBLE)
    settings, mask = Direct(steps=8), torch.tensor([[[[1.0, 0.0]]]])
    trail = [reds, *(state.x for state in ascend(path, reds, times, settings))]
    after = keep(reds, trail[-1], mask, schedule=path.level)
    found = end(descend(path, trail, times, settings, role="target", after=after))
    assert torch.equal(found[..., 1], reds[..., 1]) and (found[..., 0] - reds[..., 0]).abs().min() > 0.1


def test_the_way_back_asks_for_the_whole_trail(make_path: Any, reds: Any) -> None:
    with pytest.raises(ValueError, match="got a trail of 1 states, expected the 5 of the way up"):
        next(resample(make_path(), reds, reds, Direct(steps=4, shift=1.0), role="target"))
