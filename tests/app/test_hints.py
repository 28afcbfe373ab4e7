"""What is told of a prior before it is used.

Seen to fail: the comparison turned round; every prior asked; a key of the levels among those of sampling; nothing said;
edits, inversions or losses from Python left out; told for every picture.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import threestudio_rf
from threestudio_rf.app.build.hints import tell, tell_unread, warn_kind
from threestudio_rf.app.console import LOG
from threestudio_rf.priors.folder.layout import Table
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.sampling.scheduler import OF_SAMPLING, Scheduler
from threestudio_rf.priors.tiny import load_tiny


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What the log was told."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(LOG, level, lambda text, *words: lines.append(text % words))
    return lines


@pytest.mark.parametrize(("name", "right"), [("tiny_sd", "eps"), ("tiny_sd_v", "v")])
def test_a_network_that_does_not_answer_as_it_is_labelled_gives_a_hint_of_prior_kind(name, right, told):
    prior = load_tiny(name)
    condition = prior.embed(["a red ball", ""])
    warn_kind(prior, condition)
    assert prior.kind == right and not told, "labelled rightly: nothing is said"
    prior.kind = wrong = {"eps": "v", "v": "eps"}[right]
    tell(prior, lambda: condition, "sample")
    assert not told, "an embedded prior has no choice: it is not asked"
    other = load_tiny(name)
    other.kind, other.name = wrong, "sd"
    for use in ("loss", "loss", "edit"):
        tell(other, lambda: condition, use)
    assert len(told) == 1 and f"is read as {wrong}, as its scheduler" in told[0] and f"prior.kind={right} if" in told[0]


def test_what_a_folder_says_of_sampling_alone_is_told_where_times_come_from_settings(tmp_path, told):
    file = tmp_path / "scheduler_config.json"
    said = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_karras_sigmas": True}
    file.write_text(json.dumps(said | {"num_train_timesteps": 1000, "timestep_spacing": "leading"}))
    prior = GaussianPrior(torch.zeros(1, 3, 4, 4), 1.0, kind="flow")
    tell_unread(prior, "loss")
    assert not told
    prior.pipeline = Scheduler(Table(file), None)
    for use in ("loss", "edit", "sample"):
        tell_unread(prior, use)
    assert len(told) == 2
    assert "says shift=3.0, use_karras_sigmas=True, which is for sampling; a loss draws t" in told[0]
    assert "says use_karras_sigmas=True, which is for sampling; an edit takes its times" in told[1]
    assert not {"beta_start", "prediction_type", "num_train_timesteps"} & set(OF_SAMPLING)


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory) -> Path:
    """A folder of an eps network whose scheduler says v and trailing."""
    folder = tmp_path_factory.mktemp("prior") / "sd"
    shutil.copytree(Path(threestudio_rf.__file__).parent / "weights/tiny-sd", folder)
    file = folder / "scheduler/scheduler_config.json"
    changes = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize("task", ["edit", "invert"])
def test_an_edit_of_a_folders_prior_is_told_once_for_all_pictures(launcher, mislabelled, tmp_path, task) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), (200, 40, 40)).save(tmp_path / "in" / name)
    line = [f"task={task}", "prior=sd", f"prior.path={mislabelled}", f"image={tmp_path}/in", "source=a red ball"]
    line += ["prompt=a blue ball"] * (task == "edit") + ["edit.method=euler", "edit.steps=1"]
    code, _, out, err = launcher(*line, f"prior.cache={tmp_path}/texts", f"exp_root_dir={tmp_path}/out")
    assert code == 0 and err.count("prior.kind=eps if pictures stay noise") == 1, err
    assert out.count("says timestep_spacing=trailing, which is for sampling; an edit takes its times") == 1


def test_a_loss_and_pictures_from_python_are_told_too(mislabelled, tmp_path, told) -> None:
    prior = threestudio_rf.load_prior("sd", path=str(mislabelled), cache=str(tmp_path), device="cpu")
    threestudio_rf.distill("a red ball", loss="sds", prior=prior)(torch.full((1, 3, 64, 64), 0.5))
    threestudio_rf.sample("a red ball", prior=prior, steps=1)
    said = "\n".join(told)
    assert said.count("prior.kind=eps if pictures stay noise") == 1
    assert said.count("timestep_spacing=trailing, which is for sampling; a loss draws t") == 1
