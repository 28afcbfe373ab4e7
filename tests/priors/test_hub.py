"""Local folder, hub's cache, download, in this order, and what each failure says. No test touches the network.

Mutations tried, each seen to fail: the hub asked before the folder; `./x` taken for a repository; an incomplete
snapshot accepted; offline not looked at; the cause's text (with a token) put into the message.
"""

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
from threestudio_rf.priors.hub import locate
from threestudio_rf.priors.sd3 import load_sd3

NAME = "owner/model"


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


def test_the_real_loader_says_the_same():
    with pytest.raises(PriorError, match=r"no such folder \./x; to download write owner/name"):
        load_sd3("./x")


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


def test_offline_names_the_cache_the_switch_and_the_embedded_prior(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(PriorError) as caught:
        load_sd3(NAME)
    text = str(caught.value)
    assert all(word in text for word in (NAME, str(tmp_path), "HF_HUB_OFFLINE", "prior=tiny_sd3"))


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
