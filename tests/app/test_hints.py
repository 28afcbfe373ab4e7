"""What is told of a prior before it is used.

Seen to fail: the comparison turned round; every prior asked; a key of the levels among those of sampling; nothing said.
"""

from __future__ import annotations

import json

import pytest
import torch

from threestudio_rf.app.build.hints import tell_unread, warn_kind
from threestudio_rf.app.console import LOG
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.priors.folder.layout import Table
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.sampling.scheduler import OF_SAMPLING, Scheduler
from threestudio_rf.priors.tiny import load_tiny


@pytest.mark.parametrize(("name", "right"), [("tiny_sd", "eps"), ("tiny_sd_v", "v")])
def test_a_network_that_does_not_answer_as_it_is_labelled_gives_a_hint_of_prior_kind(name, right, caplog):
    LOG.propagate = True
    prior = load_tiny(name)
    condition = prior.embed(["a red ball", ""])
    warn_kind(PriorConfig(name="sd"), prior, condition)
    assert prior.kind == right and not caplog.text, "labelled rightly: nothing is said"
    prior.kind = wrong = {"eps": "v", "v": "eps"}[right]
    warn_kind(PriorConfig(name=name), prior, condition)
    assert not caplog.text, "no choice: it is not asked"
    warn_kind(PriorConfig(name="sd"), prior, condition)
    assert f"is read as {wrong}, by its scheduler" in caplog.text and f"prior.kind={right} if" in caplog.text


def test_what_a_folder_says_of_sampling_alone_is_told_once_where_a_loss_runs(tmp_path, caplog):
    LOG.propagate = True
    file = tmp_path / "scheduler_config.json"
    said = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_karras_sigmas": True}
    file.write_text(json.dumps(said | {"num_train_timesteps": 1000, "timestep_spacing": "leading"}))
    prior = GaussianPrior(torch.zeros(1, 3, 4, 4), 1.0, kind="flow")
    with caplog.at_level("INFO"):
        tell_unread(prior)
        assert not caplog.text
        prior.pipeline = Scheduler(Table(file), None)
        tell_unread(prior)
    assert caplog.text.count("says shift=3.0, use_karras_sigmas=True, which is for sampling") == 1
    assert caplog.text.count("\n") == 1
    assert not {"beta_start", "prediction_type", "num_train_timesteps"} & set(OF_SAMPLING)
