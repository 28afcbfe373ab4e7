"""The embedded prior's sums and words, on a stand-in folder.

Mutations tried, each seen to fail: sums not compared; missing files passed over; single letters reported as unknown.
"""

import hashlib
import shutil

import pytest
import torch

from threestudio_rf.priors import tiny
from threestudio_rf.priors.base import PriorError


@pytest.fixture
def weights(sd3_folder, tmp_path, monkeypatch):
    shutil.copytree(sd3_folder, tmp_path / tiny.NAME)
    (tmp_path / "judge.safetensors").write_bytes(b"judge")
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(tmp_path).as_posix()}\n" for f in files]
    (tmp_path / "SHA256SUMS").write_text("".join(lines))
    monkeypatch.setattr(tiny, "weights_folder", lambda: tmp_path)
    return tmp_path


def test_whole_weights_load_and_predict(weights):
    assert tiny.verify_weights() == []
    prior = tiny.load_tiny_sd3()
    assert (prior.name, prior.latent_shape) == ("tiny_sd3", (16, 8, 8)) and "Apache" in prior.licence
    out = prior.predict(torch.zeros(1, 16, 8, 8), torch.tensor([0.5]), prior.embed(["a red ball"]))
    assert out.shape == (1, 16, 8, 8) and out.isfinite().all()


def test_one_changed_bit_or_a_missing_file_is_refused_by_name(weights):
    file = weights / tiny.NAME / "transformer/diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [f"{file} differs" in fault for fault in tiny.verify_weights()] == [True]
    with pytest.raises(PriorError, match="differs from what was shipped"):
        tiny.load_tiny_sd3()
    file.unlink()
    assert tiny.verify_weights(tiny.NAME) == [f"{file} is missing"]


def test_faults_of_other_weights_do_not_stop_the_prior(weights):
    (weights / "judge.safetensors").write_bytes(b"other")
    assert len(tiny.verify_weights()) == 1 and tiny.verify_weights(tiny.NAME) == []
    assert tiny.verify_weights("tiny-sd") != []


def test_without_sums_nothing_counts_as_whole(weights):
    (weights / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in tiny.verify_weights()[0]


def test_words_it_never_saw_are_found(weights):
    assert tiny.known_words()[:3] == ["red", "blue", "green"]
    assert tiny.unknown_words("A RED mushroom, front view") == []
    assert tiny.unknown_words("a red hamburger on a Käse 42 hamburger, e") == ["hamburger", "on", "käse"]
