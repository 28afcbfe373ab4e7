"""Guidance and sampler tell every network the same time at the same latents: a network that returns its label is the
witness.

Seen to fail: a flow's label 1000 (1 - t), through float16, its mirror ignored, its output not negated, that of eps
negated.
"""

from types import SimpleNamespace

import pytest
import torch

from threestudio_rf.core.level import DiscreteVP, betas
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.layout import Shape
from threestudio_rf.priors.sd import SDPrior
from threestudio_rf.priors.sd3 import SD3Prior

TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")


class Recorder(torch.nn.Module):
    """Returns its own label everywhere and remembers what it heard; called like the UNet or like SD3's network."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, sample=None, label=None, *, hidden_states=None, timestep=None, return_dict, **conditions):
        x = sample if hidden_states is None else hidden_states
        label = timestep if label is None else label
        self.heard.append((x.clone(), label))
        return (label.to(x)[:, None, None, None].expand_as(x),)


def stub(name):
    """(network, prior, condition) of a prior whose network is a `Recorder`."""
    network = Recorder()
    text = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    shape = Shape(channels=16, size=8, patch=2, factor=8)
    parts, cache = SimpleNamespace(network=network, vae=None), ConditionCache(None, "stub", "", "float32")
    condition = Condition({"prompt": torch.zeros(1, 2, 4), "pooled": torch.zeros(1, 4)})
    if name == "sd3":
        return network, SD3Prior(shape, parts, text, cache=cache), condition
    kind = {"sd": "eps", "sd_v": "v"}.get(name, "flow")
    table, mirror = None if kind == "flow" else TABLE, name == "mirrored"
    return network, SDPrior(shape, parts, text, kind=kind, table=table, cache=cache, mirror_time=mirror), condition


LABELS = {
    "sd": torch.tensor([57, 333, 979]),
    "sd_v": torch.tensor([57, 333, 979]),
    "instaflow": torch.tensor([57.7, 333.7, 980.2]),
    "mirrored": torch.tensor([942.3, 666.3, 19.8]),
    "sd3": torch.tensor([57.7, 333.7, 980.2]),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("method", ["rfds", "rfds_rev"])
def test_the_network_hears_the_same_latents_and_labels_from_guidance_and_from_the_sampler(name, method):
    network, prior, condition = stub(name)
    predict = bind(prior, {"cond": condition, "uncond": condition})
    t, x0 = torch.tensor([0.0577, 0.3337, 0.9802]), torch.randn(3, 16, 8, 6, generator=generator(0, 0, "x"))
    settings = {"generator": generator(0, 0, "noise")}
    distill(x0, predict, t, method=METHODS[method], **settings)
    x_t, label = network.heard[-1]
    assert torch.equal(x_t[:3], x_t[3:]) and torch.equal(label[:3], label[3:])

    times = torch.stack([t, t / 2])
    list(solve(Field(lambda x, t: predict(x, t, ["cond"])["cond"], prior.kind, prior.schedule), x_t[:3], times))
    heard_x, heard = network.heard[-1]
    assert torch.equal(heard_x, x_t[:3]) and torch.equal(heard, label[:3]) and heard.dtype == label.dtype
    assert torch.equal(heard, prior.label(t)) and heard.dtype == LABELS[name].dtype
    torch.testing.assert_close(heard, LABELS[name], rtol=1e-6, atol=0)
    sign = -1 if name in ("instaflow", "mirrored") else 1
    assert torch.equal(prior.predict(x0, t, condition.expand(3))[:, 0, 0, 0], sign * prior.label(t).float())
