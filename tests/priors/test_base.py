"""Conditions and the batched call.

Mutations tried, each seen to fail: roles returned in reversed order; `repeat_interleave` for `repeat`; calls counted
once per batched call; one condition not expanded.
"""

import pytest
import torch

from threestudio_rf.core.level import rectified_flow
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.gaussian import GaussianPrior


class Recorder:
    """A prior that returns x_t + 10 t + 100 condition and remembers the batch sizes it was called with."""

    kind, schedule, latent_shape = "flow", rectified_flow, (1, 2, 5)

    def __init__(self):
        self.batches = []

    def predict(self, x_t, t, condition):
        self.batches.append(len(x_t))
        value = condition.tensors["value"]
        return x_t + (10 * t + 100 * value)[:, None, None, None]


def value(*numbers):
    return Condition({"value": torch.tensor(numbers)})


def test_all_roles_are_one_batched_call_and_equal_separate_ones():
    prior = Recorder()
    predict = bind(prior, {"cond": value(1.0, 2.0, 3.0), "uncond": value(0.0)})
    x, t = torch.randn(3, 1, 2, 5), torch.tensor([0.1, 0.5, 0.9])
    both = predict(x, t, ["uncond", "cond"])
    assert prior.batches == [6] and predict.calls == 2
    for role in ("cond", "uncond"):
        assert torch.equal(predict(x, t, [role])[role], both[role])
    assert prior.batches == [6, 3, 3] and predict.calls == 4
    shift = both["cond"] - x - 10 * t[:, None, None, None]
    torch.testing.assert_close(shift[:, 0, 0, 0], torch.tensor([100.0, 200.0, 300.0]), rtol=1e-5, atol=1e-4)


def test_a_role_that_is_not_bound_or_a_wrong_batch_is_an_error():
    predict = bind(Recorder(), {"cond": value(1.0, 2.0)})
    with pytest.raises(ValueError, match="uncond"):
        predict(torch.zeros(2, 1, 2, 5), torch.zeros(2), ["cond", "uncond"])
    with pytest.raises(ValueError, match="expected 1 or 3"):
        predict(torch.zeros(3, 1, 2, 5), torch.zeros(3), ["cond"])
    with pytest.raises(ValueError, match="t: got"):
        predict(torch.zeros(2, 1, 2, 5), torch.zeros(1), ["cond"])


def test_conditions_are_selected_joined_and_checked():
    both = Condition.cat([value(1.0, 2.0), value(3.0)])
    assert len(both) == 3
    assert both.select([2, 0, 0]).tensors["value"].tolist() == [3.0, 1.0, 1.0]
    assert both.select(torch.tensor([1])).tensors["value"].tolist() == [2.0]
    with pytest.raises(ValueError, match="leading dimension"):
        Condition({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match="same names"):
        Condition.cat([value(1.0), Condition({"other": torch.zeros(1)})])


def test_a_prior_of_this_project_can_be_bound():
    prior = GaussianPrior(torch.zeros(2, 3, 2, 5), 1.0)
    predict = bind(prior, {"cond": prior.embed(["mode 1"]), "uncond": prior.embed([""])})
    out = predict(torch.randn(4, 3, 2, 5), torch.full((4,), 0.5), ["cond", "uncond"])
    assert {role: tuple(p.shape) for role, p in out.items()} == {"cond": (4, 3, 2, 5), "uncond": (4, 3, 2, 5)}
