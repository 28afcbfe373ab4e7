"""The ring of eight modes: what the choice of noise and of t does to a cloud of particles when the prior is exact.

The numbers are those of the design's table (2,000 particles there, fewer here; 600 steps, x -= 0.05 (x0 - x0_hat)).
Seen to fail: the sign of space x0; t annealed upwards; k = 1 instead of 1 - t.
"""

from __future__ import annotations

import math

import pytest
import torch

from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.times import draw
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

STEPS, PARTICLES, STD, RADIUS = 600, 300, 0.15, 4.0
ANGLES = torch.arange(8) * math.pi / 4
MODES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)


def particles(noise: str, law: str) -> torch.Tensor:
    """(N, 2) after the run."""
    prior = GaussianPrior(MODES[:, :, None, None], STD)
    predict = bind(prior, {"cond": prior.embed([""])})
    x = normal((PARTICLES, 2, 1, 1), generator(0, 0, "start"))
    for step in range(STEPS):
        progress = step / (STEPS - 1)
        t = draw(PARTICLES, generator(0, step, "t"), t_min=0.02, t_max=0.98, law=law, progress=progress)
        out = distill(
            x,
            Model(predict, "flow", rectified_flow),
            t,
            method=Method(space="x0", noise=noise, scale=1.0),
            generator=generator(0, step, "noise"),
        )
        x = x - 0.05 * x.numel() * out.grad
    return x[:, :, 0, 0]


def distances(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The distance of every particle to its nearest mode, and which one."""
    return torch.cdist(x, MODES).min(1)


def test_random_noise_at_uniform_times_reaches_no_mode_but_a_mean_of_modes() -> None:
    away, nearest = distances(particles("random", "uniform"))
    assert (away < 3 * STD).float().mean() == 0 and len(nearest.unique()) == 8
    assert away.median().item() == pytest.approx(1.57, abs=0.1)


def test_falling_times_bring_every_particle_to_a_mode_closer_than_data_are() -> None:
    away, nearest = distances(particles("random", "annealed"))
    assert (away < 3 * STD).all() and len(nearest.unique()) == 8
    data = STD * math.sqrt(2 * math.log(2))
    assert data == pytest.approx(0.177, abs=1e-3) and away.median() < 0.2 * data


def test_rev_noise_at_uniform_times_collapses_to_the_centre() -> None:
    radius = particles("rev", "uniform").norm(dim=1)
    assert 0.1 < radius.median().item() < 0.4


def test_rev_noise_at_falling_times_reaches_all_modes_with_most_particles() -> None:
    away, nearest = distances(particles("rev", "annealed"))
    assert 0.84 < (away < 3 * STD).float().mean().item() < 0.94 and len(nearest.unique()) == 8
