"""The discrete process.

Oracle: diffusers' DDPMScheduler, single steps and whole loops, for eps, x0 and v, without limit, clipped and with the
dynamic threshold, with the small, large, learned and learned-range variance. It fails when c1 and c2 are exchanged,
when the limit acts after the mean, when `large` is the posterior's variance, when the place of learned_range is not
moved from -1..1 to 0..1, when the noise is scaled by the variance instead of its root, and when the loop adds noise at
its last index.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from threestudio_rf.core.ddpm import DDPM, ancestral_loop, clip, dynamic_threshold
from threestudio_rf.core.level import betas, column
from threestudio_rf.core.random import generator, normal

DOUBLE = torch.float64
STABLE = betas("scaled_linear", 1000, start=0.00085, end=0.012)
PROCESS = DDPM(STABLE)
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def sample(count: int = 2, dtype: torch.dtype = DOUBLE) -> Any:
    """Each (3, 2, 4, 5): the batch differs from the width."""
    return torch.randn(count, 3, 2, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))


def index(*k: int) -> Tensor:
    return torch.tensor(k)


def network(x: Tensor, t: Tensor, channels: int = 1) -> Tensor:
    """Any smooth function of both, with C or 2C channels."""
    return torch.cat([torch.sin((i + 2) * x) * column(1 + t, x) for i in range(channels)], 1)


def scheduler(n: int, kind: str = "eps", **settings: Any) -> DDPMScheduler:
    return DDPMScheduler(n, trained_betas=few(n).tolist(), prediction_type=NAMES[kind], **settings)


def few(n: int) -> Tensor:
    return betas("linear", n, start=0.01, end=0.1)


LIMITS: dict[str, Any] = {
    "none": (None, {"clip_sample": False}),
    "clip": (clip, {"clip_sample": True}),
    "threshold": (dynamic_threshold, {"thresholding": True, "sample_max_value": 100.0}),
    "quantile": (partial(dynamic_threshold, quantile=0.8), {
        "thresholding": True, "sample_max_value": 100.0, "dynamic_thresholding_ratio": 0.8,
    }),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("limit", LIMITS)
def test_a_loop_is_that_of_diffusers(kind: Any, limit: str) -> None:
    ours, settings = LIMITS[limit]
    theirs = scheduler(20, kind, **settings)
    x, draws = sample(1, torch.float32)[0], generator(0, 0, "z")
    states = ancestral_loop(DDPM(few(20)), network, x, kind=kind, limit=ours, generator=generator(0, 0, "z"))
    seen = []
    for k, state in zip(theirs.timesteps, states, strict=True):
        result = theirs.step(network(x, (k + 1).expand(3) / 20), int(k), x, generator=draws)
        x = result.prev_sample
        seen.append(state.k)
        assert torch.allclose(state.x, x, atol=2e-4)
        assert torch.allclose(state.x0_hat, result.pred_original_sample, atol=2e-4)
    assert seen == list(range(19, -1, -1))


@pytest.mark.parametrize(
    ("variance", "name", "channels"),
    [
        ("small", "fixed_small", 1),
        ("large", "fixed_large", 1),
        ("learned_range", "learned_range", 2),
        ("learned", "learned", 2),
    ],
)
def test_every_variance_is_that_of_diffusers(variance: Any, name: str, channels: int) -> None:
    theirs = scheduler(20, variance_type=name, clip_sample=False)
    process, (x, z) = DDPM(few(20)), sample(2, torch.float32)
    for k in (1, 7, 19):
        p = network(x, torch.zeros(3), channels)
        reverse = process.p_mean_variance(p, x, index(k, k, k), kind="eps", variance=variance)
        if variance == "learned":
            p = torch.cat([p[:, :2], p[:, 2:].exp()], 1)
        stepped = theirs.step(p, k, x, generator=generator(0, 0, "z")).prev_sample
        z = normal(x.shape, generator(0, 0, "z"))
        previous = reverse.previous
        assert torch.allclose(previous.mean + previous.variance.sqrt() * z, stepped, atol=2e-5)
        assert torch.allclose(previous.log_variance.exp(), previous.variance, rtol=1e-5)


def test_the_forward_marginal_is_that_of_diffusers() -> None:
    x0, eps = sample(2, torch.float32)
    k = index(0, 7, 19)
    assert torch.allclose(DDPM(few(20)).q_sample(x0, k, eps), scheduler(20).add_noise(x0, eps, k), atol=1e-6)
