"""What an edit is settled with. Seen to fail: the prior's shift left out, or taken where another one is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from threestudio_rf.core.level import DiscreteVP, betas
from threestudio_rf.edit.method import METHODS
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.trainer.edit import begin


@pytest.mark.parametrize(("given", "table", "wanted"), [(None, False, 3.0), (2.0, False, 2.0), (None, True, 1.0)])
def test_an_edit_takes_the_shift_of_its_prior_unless_another_is_given(given, table, wanted):
    means = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(-1, 3, 4, 4)
    path = {"schedule": DiscreteVP(betas("scaled_linear", 100)), "kind": "eps"} if table else {}
    prior = GaussianPrior(means, 0.1, names=["red", "blue"], **path)
    prior.time_shift = 3.0
    method = replace(METHODS["euler"], shift=given)
    assert begin(prior, method, source=["red"], target=["blue"]).settings.shift == wanted
