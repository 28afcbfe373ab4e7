"""Guidance in a limited interval: which levels hear it, what the others cost, and that one scale per sample is that
sample's own scale.

Seen to fail: an end of the interval left out; guidance outside in place of inside; the scale 0 outside; "uncond" asked
for where nobody hears it; one scale for the whole batch.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from threestudio_rf.core.guide import within
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.2, 0.6, 0.9], dtype=torch.float64)
INTERVAL = (0.6, 0.8)


def closed_form() -> Model:
    means = torch.randn(3, *SHAPE[1:], generator=generator(0, 0, "means"), dtype=torch.float64)
    prior = GaussianPrior(means, 1.5, names=["a", "b", "c"])
    texts = {"cond": ["a b"], "uncond": [""], "neg": ["c"], "twin": ["b"]}
    return bind(prior, {role: prior.embed(prompts) for role, prompts in texts.items()})


def run(method: Method, t: torch.Tensor = T) -> tuple[torch.Tensor, int]:
    model = closed_form()
    latents = torch.randn(SHAPE, generator=generator(0, 0, "latents"), dtype=torch.float64)
    return distill(latents, model, t, method=method, generator=generator(0, 0, "noise")).grad, model.calls


@pytest.mark.parametrize("name", ["rfds", "sds", "rfds_rev", "nfsd", "vsd"])
def test_every_sample_has_the_gradient_of_its_own_scale(name: str) -> None:
    method = replace(METHODS[name], scale=5.0)
    guided, plain = run(method)[0], run(replace(method, scale=1.0))[0]
    found = run(replace(method, guidance_interval=INTERVAL))[0]
    assert not torch.allclose(guided, plain)
    for sample, expected in enumerate((plain, guided, plain)):
        torch.testing.assert_close(found[sample], expected[sample], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("t", "calls"), [([0.2, 0.5, 0.9], 1), ([0.2, 0.6, 0.9], 2), ([0.6, 0.7, 0.8], 2)])
def test_no_prompt_costs_a_call_only_where_some_sample_hears_guidance(t: list[float], calls: int) -> None:
    assert run(replace(METHODS["rfds"], guidance_interval=INTERVAL), torch.tensor(t).double())[1] == calls


def test_the_scale_is_one_number_where_it_can_be() -> None:
    assert within(5.0, T, (0.0, 1.0)) == 5.0
    assert within(5.0, T, (0.91, 1.0)) == 1.0
    assert torch.as_tensor(within(5.0, T, (0.6, 0.9))).tolist() == [1.0, 5.0, 5.0]


@pytest.mark.parametrize("interval", [(0.8, 0.6), (-0.1, 1.0), (0.0, 1.1)])
def test_levels_that_are_none_are_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"guidance_interval: got .*, expected two levels from 0 to 1"):
        Method(guidance_interval=interval)


@pytest.mark.parametrize("options", [{"combiner": "csd"}, {"stage_two": 0.5, "stage_two_combiner": "bridge"}])
def test_a_scale_that_is_no_guidance_has_no_interval(options: dict) -> None:
    with pytest.raises(ValueError, match=r"whose scale is no guidance; expected \[0, 1\], or one of \['cfg', "):
        Method(guidance_interval=INTERVAL, **options)
