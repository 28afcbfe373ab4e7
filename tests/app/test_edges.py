"""What people bring at the edges: several ways to ask for several runs, flags that exclude each other, homes that are
not there, words of other programs.

Seen to fail: each refusal removed; the prompts of a file dropped in a sweep; `#` lines run; `yes` as a truth value.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from threestudio_rf.app.build.scene import pick_device
from threestudio_rf.app.cli.sweep import prompts_of
from threestudio_rf.app.errors import UserError, user_path
from threestudio_rf.app.settings.compose import from_text, to_text
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.tasks import lift
from threestudio_rf.tiny.train import parts


def test_a_sweep_over_seeds_runs_every_prompt_of_a_file(launcher, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("# a comment\na red ball\n\na blue cube\n")
    line = ["-m", "task=sample", "prior=gaussian", "n=1", "steps=1", "seed=0,1", f"prompt_file={tmp_path}/two.txt"]
    code, _, _, err = launcher(*line, f"exp_root_dir={tmp_path}/out")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "out/sample").iterdir())
    assert len(names) == 4 and all(any(f"seed{s}" in name for name in names) for s in (0, 1))
    assert sum("red_ball" in name for name in names) == 2 and sum("blue_cube" in name for name in names) == 2
    assert prompts_of(tmp_path / "two.txt") == ["a red ball", "a blue cube"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["--train", "--test", "prompt=a red ball"], "--test and --train: expected one of"),
        (["version=2", "prompt=a red ball"], "version is that of the settings' format"),
        (["prompt=lib:cowboy_boots"], 'prompt="cowboy boots"'),
        (["task=edit", "image=x.png", "prompts=[a ball,lib:cowboy_boots]"], 'edit.prompts="cowboy boots"'),
        (["task=sample", "prior=gaussian", "n=1", "steps=1", "prompt_file={list}"], 'prompt="cowboy boots"'),
        (
            ["-m", "task=sample", "prior=gaussian", "seed=0,1", "prompt=x", "resume=run"],
            "a sweep (-m) begins new runs; resume= and weights=",
        ),
        (["task=invert", "image=x.png", "prompt_file=list.txt"], "task=invert does not read it"),
        (["task=doctor", "prompt_file=list.txt"], "task=doctor does not read it"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(launcher, tmp_path: Path, line, words) -> None:
    (tmp_path / "list.txt").write_text("a red ball\nlib:cowboy_boots\n")
    line = [word.replace("{list}", str(tmp_path / "list.txt")) for word in line]
    code, _, _, err = launcher(*line, f"exp_root_dir={tmp_path}/out")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["train_tiny.part=sd"], "train the part instaflow first, or use start=shipped"),
        (["train_tiny.part=sd_v"], "train the part instaflow first"),
        (["train_tiny.part=reflow"], "train the part instaflow first"),
        (["train_tiny.part=sd3", "train_tiny.start=no/such/folder"], "no/such/folder, which is not there"),
    ],
)
def test_a_part_without_weights_to_begin_with_is_refused_before_pictures_are_drawn(
    launcher, monkeypatch, tmp_path: Path, line, words
) -> None:
    for name in ("load_vae", "load_latents", "load_world"):
        monkeypatch.setattr(parts, name, lambda *_, name=name: pytest.fail(f"{name} came first"))
    code, folder, _, err = launcher("task=train_tiny", *line, f"exp_root_dir={tmp_path}/out")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    assert folder is None and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "size", "words"),
    [
        (
            ["prompt=a red ball"],
            "2",
            "got no RANK, MASTER_ADDR, MASTER_PORT, expected torchrun's; start with",
        ),
        (["prompt=a red ball", "camera.views=[3]"], "2", "camera.views=[3]: expected multiples of 2"),
        (
            ["prompt=a red ball", "camera.views=[1]", "camera.sizes=[64]"],
            "3",
            "camera.sizes=[64]: expected multiples of 3",
        ),
        (
            ["prompt=a red ball", "camera.views=[1]", "scene=mesh_tiny"],
            "2",
            "camera.views=[1]: expected multiples of 2",
        ),
        (["prompt=a red ball", "scene=image"], "3", "scene.image.per_step=[4]: expected multiples of 3"),
        (["task=sample", "prompt=a red ball"], "2", "not task=sample mode=train; start this without torchrun"),
        (["-m", "prompt=a red ball", "seed=1,2"], "2", "not -m; start this without torchrun"),
        (["prompt=a red ball"], "two", "WORLD_SIZE=two: expected a number"),
    ],
)
def test_what_several_processes_cannot_do_is_refused(launcher, monkeypatch, tmp_path: Path, line, size, words) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    code, _, _, err = launcher(*line, f"exp_root_dir={tmp_path}")
    assert code == 2 and words in err and not any(tmp_path.iterdir()), err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no kernel image is available\nmore"), "no kernel image is available"),  # too old
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "CUDA out of memory."),  # taken by another program
        (AssertionError(), "no reason given"),
    ],
)
def test_a_card_that_does_not_compute_is_refused_or_left_with_the_reason(monkeypatch, error, reason: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", Mock(side_effect=error))
    with pytest.raises(UserError, match=rf"device=cuda: it cannot be used \({reason}\); use"):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="it cannot be used"):
        pick_device("auto")
    with pytest.raises(UserError, match="this machine shows 1 CUDA devices"):
        pick_device("cuda:1")


def test_a_step_that_finds_no_memory_ends_with_what_helps(launcher, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lift, "prepare", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory.\nmore")))
    code, _, _, err = launcher("prompt=a red ball", "prior=gaussian", f"exp_root_dir={tmp_path}")
    last = err.strip().splitlines()[-1]
    assert code == 1 and last.startswith("error: out of GPU memory. What helps, in this order: smaller camera.sizes"), (
        err
    )


def test_a_home_that_is_not_there_is_told_with_the_key(monkeypatch) -> None:
    def nowhere(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(UserError, match=r"prior\.cache=~/x: Could not determine home"):
        user_path("~/x", "prior.cache")


@pytest.mark.parametrize("word", ["yes", "on", "1.50", "007", "no"])
def test_text_is_taken_as_it_was_written(word: str) -> None:
    text = to_text(Config(prompt="PROMPT")).replace("prompt: PROMPT", f"prompt: {word}")
    assert from_text(text, "file").prompt == word
    assert from_text(text.replace("wandb: false", "wandb: yes"), "file").wandb is True


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_file_of_prompts_is_read_in_every_unicode_encoding(tmp_path: Path, encoding: str) -> None:
    text = "a red ball\r\n# no\r\nein grüner Würfel\ra\u2028b\x0bc\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    assert prompts_of(tmp_path / "list.txt") == ["a red ball", "ein grüner Würfel", "a\u2028b\x0bc"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a ball\nein grüner Würfel\n".encode("latin-1"), "byte 0xfc in line 2; save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "byte 0x89 in line 1"),
        (b"a ball\0\0\0\0more of it", "zero bytes"),
        (b"", "got none"),
    ],
)
def test_a_file_that_is_no_text_says_where(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UserError, match=words):
        prompts_of(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"prompt_file=.*: Is a directory"):
        prompts_of(tmp_path)
