"""A mesh whose axes and colours can be told apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threestudio_rf.export.mesh import Mesh, extract


def tower_density(points: Tensor) -> Tensor:
    """Tall along z, unlike x and y."""
    return 50.0 * torch.sigmoid((1 - (points / torch.tensor([0.2, 0.3, 0.6])).norm(dim=-1)) / 0.05)


def tower_rgb(points: Tensor) -> Tensor:
    """Redder upwards, bluer towards the front."""
    return ((points + 1) / 2).flip(-1)


@pytest.fixture
def tower() -> Mesh:
    """Tall along z (unlike x and y), with its red end on top and blue growing towards the front."""
    return extract(tower_density, tower_rgb, radius=0.8, resolution=32, threshold=25.0)
