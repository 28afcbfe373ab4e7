"""Weights by name, in numbers. Mutations tried, each seen to fail: sigma for sigma^2; alpha and sigma exchanged."""

import torch

from threestudio_rf.core.level import Level
from threestudio_rf.distill.weights import WEIGHTS


def test_weights_have_the_values_of_their_names():
    level = Level(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.5]))
    wanted = {
        "uniform": [1.0, 1.0],
        "sigma2": [0.04, 0.25],
        "alpha_sigma2": [0.032, 0.125],
        "sigma_over_alpha": [0.25, 1.0],
    }
    assert set(WEIGHTS) == set(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(WEIGHTS[name](level), torch.tensor(values))
