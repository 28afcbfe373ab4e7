"""Local folder, hub's cache, download, in this order, and what each failure says. No test touches the network.

Mutations tried, each seen to fail: the hub asked before the folder; `./x` taken for a repository; an incomplete
snapshot accepted; offline not looked at; the cause's text (with a token) put into the message; prior.offline ignored;
the safety checker, T5 or a VAE beside a tiny one fetched; a revision dropped; the library's ValueError passed on.
"""

import json
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.hub import locate
from threestudio_rf.priors.folder.parts import PartOptions
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

NAME = "owner/model"
LOADERS = pytest.mark.parametrize("load", [load_sd, load_sd3])


def nothing(folder):
    pass


def never(name, local_only):
    pytest.fail("the hub was asked")


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def message(path, fetch=never, complete=nothing):
    with pytest.raises(PriorError) as caught:
        locate(path, fetch, complete)
    return str(caught.value)


@pytest.mark.parametrize("path", ["./x", "../x", "/no/such/folder", "x", "a/b/c", "~/nothing/here", "C:\\x"])
def test_a_missing_folder_is_not_taken_for_a_repository(path):
    assert message(path) == f"no such folder {path}; to download write owner/name"


@pytest.mark.parametrize("path", ["x" * 3000, "y" * 300])
def test_a_name_that_no_file_can_have_is_told(path):
    assert message(path) == f"prior.path={path[:80]}: File name too long"


@LOADERS
def test_the_real_loaders_say_the_same(load):
    with pytest.raises(PriorError, match=r"no such folder \./x; to download write owner/name"):
        load("./x")


def test_a_local_folder_comes_first_and_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert locate(NAME, never, nothing).resolve() == tmp_path / NAME
    (tmp_path / "model.safetensors").touch()
    assert "is a file" in message("model.safetensors")


def test_the_cache_is_used_when_it_is_whole(tmp_path):
    asked = []

    def fetch(name, local_only):
        asked.append(local_only)
        return tmp_path

    assert locate(NAME, fetch, nothing) == tmp_path and asked == [True]


def test_an_incomplete_snapshot_is_downloaded_again(tmp_path, online):
    asked = []

    def fetch(name, local_only):
        asked.append(local_only)
        return tmp_path

    def complete(folder):
        if len(asked) < 2:
            raise PriorError("not whole")

    assert locate(NAME, fetch, complete) == tmp_path and asked == [True, False]


@LOADERS
def test_offline_names_the_cache_the_switch_and_the_embedded_prior(load, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PriorError) as caught:
        load(NAME)
    text = str(caught.value)
    assert all(word in text for word in (NAME, str(tmp_path), "HF_HUB_OFFLINE", "prior=tiny_sd3"))


def test_offline_as_a_setting_asks_the_cache_only_and_is_named(online, tmp_path):
    asked = []

    def fetch(name, local_only):
        asked.append(local_only)
        raise LocalEntryNotFoundError("not cached")

    with pytest.raises(PriorError, match=r"prior\.offline=true, so it cannot be downloaded"):
        locate(NAME, fetch, nothing, offline=True)
    assert asked == [True] and locate(NAME, lambda name, local_only: tmp_path, nothing, offline=True) == tmp_path


def cached(folder, cache, name=NAME):
    """A folder as the snapshot of a repository in a hub cache."""
    home, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text(commit)
    return shutil.copytree(folder, home / "snapshots" / commit)


@LOADERS
def test_a_repository_in_the_hubs_cache_loads_without_network_as_its_folder_does(
    load, monkeypatch, tmp_path, sd_folder, sd3_folder, tiny_vae
):
    folder = {load_sd: sd_folder, load_sd3: sd3_folder}[load]
    snapshot = cached(folder, tmp_path)
    if load is load_sd:  # as in the released repositories, of which these parts are never fetched
        index = json.loads((snapshot / "model_index.json").read_text())
        index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
        (snapshot / "model_index.json").write_text(json.dumps(index))
    cached(tiny_vae, tmp_path, "owner/taesd")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    prior = load(NAME, options=PartOptions(vae="owner/taesd"))
    prior.load()
    assert prior.parts.places == (snapshot, tmp_path / "models--owner--taesd/snapshots" / ("0" * 40))
    assert prior.embed(["red"]).tensors["prompt"].equal(load(folder).embed(["red"]).tensors["prompt"])
    (snapshot / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(PriorError, match="HF_HUB_OFFLINE"):
        load(NAME)


def test_what_is_downloaded_leaves_out_what_no_adapter_reads(online, monkeypatch, sd_folder, sd3_folder, tiny_vae):
    import diffusers

    for load, name, folder, options, never in (
        (load_sd, "StableDiffusionPipeline", sd_folder, {}, {"safety_checker"}),
        (load_sd3, "StableDiffusion3Pipeline", sd3_folder, {"t5": False}, {"text_encoder_3", "tokenizer_3"}),
    ):
        asked = []

        def download(name, *, folder=folder, asked=asked, **options):
            asked.append(options)
            if options["local_files_only"]:
                raise LocalEntryNotFoundError("not cached")
            return folder

        monkeypatch.setattr(getattr(diffusers, name), "download", download)
        load(NAME, revision="abc", variant="fp16", options=PartOptions(vae=str(tiny_vae)), **options)
        assert [options.pop("local_files_only") for options in asked] == [True, False]
        wanted = {"revision": "abc", "variant": "fp16", "use_safetensors": True}
        left_out = never | {"feature_extractor", "image_encoder", "vae"}
        assert asked == [wanted | dict.fromkeys(left_out)] * 2


def test_a_repository_whose_parts_are_code_of_its_own_is_refused(online):
    def fetch(name, local_only):
        raise ValueError("unet/mine.py as defined in `model_index.json` does not exist")

    assert "owner/model cannot be downloaded as a prior: unet/mine.py" in message(NAME, fetch)


def answer(kind, status):
    headers = {"authorization": "Bearer hf_secret"}
    return kind("hf_secret was refused", response=SimpleNamespace(status_code=status, headers=headers, request=None))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answer(GatedRepoError, 403), "accept its licence on https://huggingface.co/owner/model"),
        (answer(RepositoryNotFoundError, 404), "knows no repository owner/model"),
        (answer(RevisionNotFoundError, 404), "prior.revision"),
        (answer(HfHubHTTPError, 401), "hf auth login"),
        (ConnectionError("no route for hf_secret"), "is there a network?"),
    ],
)
def test_each_answer_of_the_hub_is_one_paragraph_without_the_token(online, error, words):
    def fetch(name, local_only):
        if local_only:
            raise LocalEntryNotFoundError("not cached")
        raise OSError("wrapped by diffusers") from error

    text = message(NAME, fetch)
    assert words in text and "hf_secret" not in text and "\n" not in text


def test_an_error_of_the_http_client_itself_is_caught(online):
    def fetch(name, local_only):
        raise HfHubHTTPError.__bases__[0]("connection refused")

    assert "is there a network?" in message(NAME, fetch)
