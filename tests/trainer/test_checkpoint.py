"""Checkpoints under everything that can happen to a file: cut, flipped, malicious, disk full, killed at any moment.

Mutations seen to fail: the sha256 comparison removed (bit flip), `weights_only=False` (canary), the temporary name
left out, so that `path` is opened directly (disk full), the falling order of the step files reversed (fallback),
`restore_random_states` made empty (resumed run with dropout).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from threestudio_rf.trainer import checkpoint
from threestudio_rf.trainer.checkpoint import CheckpointError, load, pack, save


def state_of(step: int, size: int = 4) -> dict:
    scene = {"table": torch.full((size,), float(step)), "step": torch.tensor(step)}
    optimiser = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return pack(
        step=step, scene=scene, optimiser=optimiser, config="a: 1", prior={"name": "p"}, figures={"seconds": 1.0}
    )


def flip(path: Path, at: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def three(folder: Path) -> Path:
    for step in (10, 20, 30):
        save(folder, state_of(step), keep=3)
    return folder


def test_what_is_saved_comes_back(tmp_path):
    saved = state_of(5)
    path = save(tmp_path, saved)
    found = load(path)
    assert found.path == path and found.passed_over == []
    assert found.state["step"] == 5 and found.state["config"] == "a: 1" and found.state["figures"] == {"seconds": 1.0}
    assert torch.equal(found.state["scene"]["table"], saved["scene"]["table"])
    assert found.state["optimiser"]["param_groups"] == saved["optimiser"]["param_groups"]


def test_a_folder_a_run_folder_and_last_mean_the_newest(tmp_path):
    three(tmp_path / "ckpts")
    for path in (tmp_path, tmp_path / "ckpts", tmp_path / "ckpts" / "last.ckpt"):
        assert load(path).state["step"] == 30
    assert load(tmp_path / "ckpts" / "step-0000010.ckpt").state["step"] == 10


def test_only_the_newest_are_kept_and_all_of_them_are_in_the_manifest(tmp_path):
    for step in (10, 20, 30, 100):
        save(tmp_path, state_of(step), keep=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step-0000030.ckpt", "step-0000100.ckpt", "last.ckpt", "manifest.json"}
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert set(files) == names - {"manifest.json"}
    assert files["last.ckpt"]["size"] == (tmp_path / "last.ckpt").stat().st_size


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_cut_file_falls_back_to_the_one_before(tmp_path, length):
    three(tmp_path)
    newest = tmp_path / "step-0000030.ckpt"
    newest.write_bytes(newest.read_bytes()[:length])
    found = load(tmp_path)
    assert found.state["step"] == 20
    assert any("last.ckpt" in line and "damaged" in line for line in found.passed_over)


def test_a_flipped_bit_falls_back_although_torch_does_not_see_it(tmp_path):
    three(tmp_path)
    path = tmp_path / "step-0000030.ckpt"
    at = path.read_bytes().index(torch.full((4,), 30.0).numpy().tobytes())
    flip(path, at)
    silent = torch.load(path, weights_only=True)
    assert not torch.equal(silent["scene"]["table"], torch.full((4,), 30.0))
    assert load(tmp_path).state["step"] == 20


def test_a_file_that_is_gone_falls_back(tmp_path):
    three(tmp_path)
    (tmp_path / "last.ckpt").unlink()
    assert load(tmp_path).state["step"] == 30
    (tmp_path / "step-0000030.ckpt").unlink()
    assert load(tmp_path).state["step"] == 20


def test_nothing_usable_is_one_error_that_names_the_files(tmp_path):
    three(tmp_path)
    for path in tmp_path.glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*step-0000030.*step-0000010"):
        load(tmp_path)


def test_a_file_without_a_manifest_is_read(tmp_path):
    path = save(tmp_path / "a", state_of(7))
    alone = tmp_path / "elsewhere.ckpt"
    alone.write_bytes(path.read_bytes())
    assert load(alone).state["step"] == 7


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_file_runs_nothing_and_no_advice_is_given(tmp_path, how):
    canary, path = tmp_path / "canary", tmp_path / "evil.ckpt"
    evil = state_of(1) | {"scene": Canary(canary)}
    if how == "torch":
        torch.save(evil, path)
    else:
        path.write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not canary.exists()
    assert "weights_only" not in str(caught.value) and "executed" in str(caught.value)
    assert caught.value.__context__ is None


def test_a_foreign_file_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load(tmp_path / "foreign.ckpt")


@pytest.fixture
def small_disk():
    """Files may not grow beyond a size: writes fail in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_old_files_and_leaves_no_temporary(tmp_path, small_disk):
    three(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    small_disk(2000)
    with pytest.raises(OSError):
        save(tmp_path, state_of(40), keep=3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    small_disk(resource.RLIM_INFINITY)
    assert load(tmp_path).state["step"] == 30


@pytest.mark.parametrize("name", ["replace", "link", "fsync"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_run_that_is_killed_while_saving_can_always_be_resumed(tmp_path, monkeypatch, name, call):
    three(tmp_path)
    real, calls = getattr(os, name), []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(os, name, killed)
    with contextlib.suppress(KeyboardInterrupt):
        save(tmp_path, state_of(40), keep=2)
    monkeypatch.undo()
    assert load(tmp_path).state["step"] in (30, 40)
    save(tmp_path, state_of(50), keep=2)
    assert load(tmp_path).state["step"] == 50
    assert not list(tmp_path.glob("*.tmp.*"))


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    save(tmp_path, state_of(5))
    assert (tmp_path / "last.ckpt").read_bytes() == (tmp_path / "step-0000005.ckpt").read_bytes()


def run(folder: Path | None, steps: int, resume: bool) -> torch.Tensor:
    """AdamW with dropout and random data from the global generators."""
    torch.manual_seed(0)
    random.seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1)
    first = 0
    if resume and folder is not None:
        found = load(folder).state
        net.load_state_dict(found["scene"])
        optimiser.load_state_dict(found["optimiser"])
        checkpoint.restore_random_states(found["rng"])
        first = found["step"]
    for step in range(first, steps):
        optimiser.zero_grad()
        (net(torch.randn(5, 3)).square().mean() * random.random()).backward()
        optimiser.step()
        if folder is not None and step + 1 == steps:
            parts = {"scene": net.state_dict(), "optimiser": optimiser.state_dict()}
            save(folder, pack(step=step + 1, config="", prior={}, figures={}, **parts))
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_a_run_that_stopped_twice_ends_bit_equal_to_one_that_did_not(tmp_path):
    whole = run(None, 12, resume=False)
    run(tmp_path, 4, resume=False)
    run(tmp_path, 9, resume=True)
    assert torch.equal(run(tmp_path, 12, resume=True), whole)


def believed(folder: Path, file: Path, state: dict) -> None:
    """Put `state` in the place of a file, with a manifest that believes it."""
    file.unlink()
    torch.save(state, file)
    entry = {"step": 0, "size": 0, "sha256": checkpoint.hashlib.sha256(file.read_bytes()).hexdigest()}
    checkpoint.write_manifest(folder, checkpoint.read_manifest(folder) | {file.name: entry})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", float("nan")),
        ("step", -1),
        ("step", True),
        ("step", "30"),
        ("scene", [torch.ones(3)]),
        ("scene", {"table": None}),
        ("scene", {"table": torch.tensor([1.0, torch.nan])}),
        ("optimiser", None),
        ("optimiser", {"state": {}}),
        ("config", {"a": 1}),
        ("prior", {"name": None}),
        ("figures", None),
        ("figures", {"seconds": float("inf")}),
        ("rng", {"python": (3, (1, 2), None), "torch": torch.get_rng_state(), "cuda": []}),
        ("rng", {"python": random.getstate(), "torch": torch.get_rng_state()[:10], "cuda": []}),
        ("rng", {"python": random.getstate(), "torch": torch.get_rng_state()}),
    ],
)
def test_an_entry_that_is_wrong_is_named_and_the_older_good_file_taken(tmp_path, key, value):
    three(tmp_path)
    for name in ("last.ckpt", "step-0000030.ckpt"):
        believed(tmp_path, tmp_path / name, state_of(30) | {key: value})
    found = load(tmp_path)
    assert found.state["step"] == 20 and all(f"its entry {key} is wrong, expected" in p for p in found.passed_over)
    with pytest.raises(CheckpointError, match=f"its entry {key} is wrong"):
        checkpoint._read(tmp_path / "last.ckpt", set())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": [1]}', '{"files": {"last.ckpt": {"sha256": 7}}}', "null", "\xff"]
)
def test_a_manifest_that_is_none_is_as_if_there_were_none(tmp_path, text):
    three(tmp_path)
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    assert load(tmp_path).state["step"] == 30 and load(tmp_path).passed_over == []
    save(tmp_path, state_of(40), keep=3)
    assert load(tmp_path).state["step"] == 40 and len(checkpoint.read_manifest(tmp_path)) >= 2


def test_what_does_not_fit_is_told_with_its_file_and_without_names_of_errors(tmp_path):
    layer = nn.Linear(2, 2)
    for state, words in (({"weight": torch.zeros(3, 2)}, "bias"), ({"other": torch.zeros(1)}, "other")):
        with pytest.raises(CheckpointError, match=words) as caught, checkpoint.fitting(tmp_path / "x.ckpt", "scene"):
            layer.load_state_dict(state)
        assert "x.ckpt: its scene does not fit" in str(caught.value) and "Error" not in str(caught.value)
        assert "\n" not in str(caught.value)
