"""Backgrounds are functions of the direction. Seen to fail: waves of another angle; a solid colour reversed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes.background import EnvironmentBackground, SolidBackground


def test_a_solid_background_is_one_colour() -> None:
    colour = SolidBackground((0.1, 0.5, 0.9))(torch.zeros(5, 3))
    assert torch.equal(colour, torch.tensor([0.1, 0.5, 0.9]).expand(5, 3))


def test_an_environment_depends_on_the_direction_and_learns_one() -> None:
    generator = torch.Generator().manual_seed(0)
    sky = EnvironmentBackground(generator=generator)
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator), dim=-1)
    target = 0.5 + 0.4 * directions
    optimizer = torch.optim.Adam(sky.parameters(), 0.03)
    for _ in range(60):
        loss = (sky(directions) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sky(directions).shape == (64, 3) and loss < 2e-3
    assert sky(directions).min() >= 0 and sky(directions).max() <= 1


def test_the_network_hears_the_direction_and_its_waves() -> None:
    heard: list[Tensor] = []
    sky = EnvironmentBackground(frequencies=2, hidden=4)
    sky.network.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    x = torch.tensor([[0.6, 0.0, -0.8], [0.0, 1.0, 0.0]])
    sky(x)
    assert torch.equal(heard[0], torch.cat([x, x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()], dim=-1))


def test_a_background_colour_has_three_channels() -> None:
    with pytest.raises(ValueError, match=r"\(r, g, b\)"):
        SolidBackground((1.0, 1.0))  # type: ignore[arg-type]
