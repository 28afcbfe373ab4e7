"""What iRFDS finds where all is known: for N(mu, s^2) its fixed point at one noise level t', in closed form.

Seen to fail: s for s^2, t' and 1 - t' exchanged.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from threestudio_rf.core.random import generator
from threestudio_rf.edit.invert import Ode
from threestudio_rf.edit.irfds import IRFDS, explain
from threestudio_rf.edit.method import find_noise


@pytest.mark.parametrize(("std", "level"), [(1.0, 0.5), (0.5, 0.6), (2.0, 0.3)])
def test_the_fixed_point_for_a_gaussian_is_not_the_noise_of_the_ode(
    std: float, level: float, make_path: Any, reds: Any, modes: Any, end: Any
) -> None:
    path = make_path("flow", std=std)
    settings = IRFDS(accumulate=1, t_min=level, t_max=level, penalty=0.0, steps=300, rate=0.5, optimiser="sgd")
    found = end(explain(path, reds, settings, generator=generator(0, 0, "e")))
    wanted = (reds - modes[:1]) * level / ((1 - level) * std**2)
    assert torch.allclose(found, wanted, atol=1e-5)
    climb = Ode("midpoint", steps=100, t_start=1.0, shift=1.0)
    ode = end(find_noise(path, reds, climb, generator=generator(0, 0, "e")))
    assert torch.allclose(ode, (reds - modes[:1]) / std, atol=2e-2)
    assert torch.allclose(found, ode, atol=5e-2) == (abs(level - std / (1 + std)) < 1e-6)
