"""VSD from the command line, on latents of the embedded prior: its figures, and a run that is stopped and goes on.

Seen to fail: the twin's state not loaded again; its optimiser's state left out; its training steps not counted.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from threestudio_rf.app.cli.start import start

LINE = ["scene=image", "loss=vsd", "prompt=a red mushroom", "scene.image.particles=1", "trainer.validate_every=0"]
LINE += ["trainer.log_every=1", "loss.twin_lr=0.01", "evaluate.auto=false", "checkpoint.every=0"]


def run(root: Path, *line: str) -> Path:
    assert start([*LINE, f"exp_root_dir={root}", *line]) == 0
    (folder,) = root.glob("*/*")
    return folder


def values(folder: Path) -> Tensor:
    state = torch.load(folder / "ckpts/last.ckpt", weights_only=True)
    assert set(state["extra"]["twin"]) == {"lora", "bias", "optimiser"}
    return state["scene"]["values"]


def twin(folder: Path) -> dict[str, Tensor]:
    """The weights of the twin, and the two moments of its optimiser."""
    state = torch.load(folder / "ckpts/last.ckpt", weights_only=True)["extra"]["twin"]
    moments = state["optimiser"]["state"]
    return state["lora"] | {f"{i} {key}": value for i, row in moments.items() for key, value in row.items()}


def test_a_run_with_a_twin_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "trainer.steps=2")
    parted = run(tmp_path / "parted", "trainer.steps=1")
    assert not torch.equal(values(whole), values(parted))
    assert start([f"resume={parted}", "trainer.steps=2"]) == 0
    assert torch.equal(values(whole), values(parted))
    one, other = twin(whole), twin(parted)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    with (whole / "csv_logs/metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [float(row["twin_loss"]) > 0 for row in rows] == [True] * 2
    state = torch.load(whole / "ckpts/last.ckpt", weights_only=True)
    assert state["figures"]["network_calls"] == 10
