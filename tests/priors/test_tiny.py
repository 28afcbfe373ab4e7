"""The embedded priors' sums and words, on stand-in folders.

Mutations tried, each seen to fail: sums not compared, or those of tiny-sd3 only; missing files passed over; single
letters reported as unknown; tiny_instaflow by its scheduler; mirror or options dropped; a link written as text, or an
absent folder, not told.
"""

import hashlib
import shutil

import pytest
import torch

from threestudio_rf.priors import tiny
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.parts import PartOptions

VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def weights(sd3_folder, sd_folder, sd_v_folder, tmp_path, monkeypatch):
    shutil.copytree(sd3_folder, tmp_path / tiny.NAME)
    for name, folder in {"tiny-sd": sd_folder, "tiny-sd-v": sd_v_folder, "tiny-instaflow": sd_folder}.items():
        (shutil.copytree(folder, tmp_path / name) / VAE).unlink()
        (tmp_path / name / VAE).symlink_to(f"../../{tiny.NAME}/{VAE}")
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


@pytest.mark.parametrize(
    ("name", "kind", "label"),
    [("tiny_sd3", "flow", 250.0), ("tiny_sd", "eps", 249), ("tiny_sd_v", "v", 249), ("tiny_instaflow", "flow", 250.0)],
)
def test_every_embedded_prior_loads_by_its_name_as_its_kind(weights, name, kind, label):
    prior = tiny.load_tiny(name, options=PartOptions(vae_checkpointing=True), dtype=torch.bfloat16)
    assert (prior.name, prior.kind, prior.label(torch.tensor([0.25])).item()) == (name, kind, label)
    assert "Apache" in prior.licence and prior.parts.options.vae_checkpointing and prior.text.dtype == torch.bfloat16
    assert prior.encode(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_only_the_embedded_flow_of_sds_shape_is_mirrored(weights):
    assert tiny.load_tiny("tiny_instaflow", mirror_time=True).label(torch.tensor([0.25])).item() == 750.0
    for name in ("tiny_sd3", "tiny_sd", "tiny_sd_v"):
        with pytest.raises(PriorError, match="mirror"):
            tiny.load_tiny(name, mirror_time=True)


def test_a_link_that_git_wrote_as_text_is_told_with_its_remedy(weights):
    file = weights / "tiny-sd" / VAE
    file.unlink()
    file.write_text(f"../../{tiny.NAME}/{VAE}")
    with pytest.raises(PriorError, match=r"link that git wrote as a text file: run `git config core\.symlinks"):
        tiny.load_tiny("tiny_sd")
    tiny.load_tiny("tiny_sd_v")


def test_an_embedded_prior_that_is_not_there_is_told_with_those_that_are(weights):
    shutil.rmtree(weights / "tiny-sd-v")
    with pytest.raises(PriorError, match=r"no embedded prior tiny_sd_v .*there: tiny_sd3, tiny_sd, tiny_inst"):
        tiny.load_tiny("tiny_sd_v")
    with pytest.raises(PriorError, match="no embedded prior tiny_flux"):
        tiny.load_tiny("tiny_flux")


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
    assert tiny.verify_weights("tiny-none") != []


def test_without_sums_nothing_counts_as_whole(weights):
    (weights / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in tiny.verify_weights()[0]


def test_words_it_never_saw_are_found(weights):
    assert tiny.known_words()[:3] == ["red", "blue", "green"]
    assert tiny.unknown_words("A RED mushroom, front view") == []
    assert tiny.unknown_words("a red hamburger on a Käse 42 hamburger, e") == ["hamburger", "on", "käse"]
    for name in tiny.EMBEDDED:
        assert tiny.unknown_words("a red zebra", tiny.whole_folder(name)) == ["zebra"]
