"""The closed-form mixture in double precision behind the editors' callable: source is red, target is blue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.level import Continuous, DiscreteVP, Level, betas, rectified_flow
from threestudio_rf.core.sample import State
from threestudio_rf.edit.path import Path
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

DOUBLE = torch.float64
MODES = torch.tensor([[[[-1.0, 0.3]]], [[[1.0, -0.2]]]], dtype=DOUBLE)


def cosine(t: Tensor) -> Level:
    """A smooth variance-preserving path."""
    return Level((t * math.pi / 2).cos(), (t * math.pi / 2).sin())


SMOOTH = Continuous(cosine)


TABLE = DiscreteVP(betas("scaled_linear", 1000))
PATHS: dict[str, tuple[Any, Any]] = {
    "flow": ("flow", rectified_flow),
    "eps": ("eps", TABLE),
    "x0": ("x0", TABLE),
    "v": ("v", DiscreteVP(betas("scaled_linear", 1000), final="first")),
    "smooth eps": ("eps", SMOOTH),
    "smooth v": ("v", SMOOTH),
}


@pytest.fixture
def make_path() -> Callable[..., Path]:
    """path(name, std=...): the mixture as an editor sees it, by the names of `PATHS`."""

    def make(name: str = "flow", std: float = 0.3) -> Path:
        kind, schedule = PATHS[name]
        prior = GaussianPrior(MODES, std, kind=kind, schedule=schedule, names=["red", "blue"])
        found = prior.embed(["red", "blue", ""])
        roles = {role: found.select([i]) for i, role in enumerate(("source", "target", "uncond"))}
        return Path(bind(prior, roles))

    return make


@pytest.fixture
def modes() -> Tensor:
    """The means of red and blue (2, 1, 1, 2)."""
    return MODES


@pytest.fixture
def reds() -> Tensor:
    """Five draws of the source mode (5, 1, 1, 2)."""
    return MODES[:1] + 0.3 * torch.randn(5, 1, 1, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def end() -> Callable[[Iterable[State]], Tensor]:
    """x of the last state."""

    def last(states: Iterable[State]) -> Tensor:
        *_, state = states
        return state.x

    return last
