"""The scripts for a GPU say nothing that today's command line or their own parts do not understand: they wait for a
card for months, and then have nine minutes.

Seen to fail: a setting misspelt in the training script; an override misspelt in bench/device.py.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.cli.main import settings_of
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.flags import translate

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/bin/sh
case "$1" in -c) exit 0;; esac
for word; do printf '%s\\t' "$word" >> "$RECORD"; done
printf '\\n' >> "$RECORD"
echo '| figure | value | note |'
"""


def commands(script: str, tmp_path: Path, *words: str) -> list[list[str]]:
    """What the script gives to Python, in order; a stand-in takes it."""
    stub, record = tmp_path / "python", tmp_path / "record"
    stub.write_text(STUB)
    stub.chmod(0o755)
    given = {"PYTHON": str(stub), "RECORD": str(record), "OUT": str(tmp_path / "out")}
    subprocess.run(
        ["bash", str(ROOT / "bench" / script), *words], env=os.environ | given, capture_output=True, timeout=60
    )
    return [line.split("\t")[:-1] for line in record.read_text().splitlines()]


@pytest.fixture(scope="module")
def device() -> Any:
    sys.path.insert(0, str(ROOT / "bench"))
    yield importlib.import_module("device")
    sys.path.remove(str(ROOT / "bench"))


def understood(line: list[str]) -> None:
    """A line of launch.py: composed, checked, and of a task."""
    settings_of(translate([word for word in line[1:] if word != "device=cuda"]))


def test_every_command_of_the_measuring_script_is_understood(device: ModuleType, tmp_path: Path, monkeypatch) -> None:
    found = commands("device.sh", tmp_path)
    launched = [line for line in found if line[0] == "launch.py"]
    parts = [line[1:] for line in found if line[0] == "bench/device.py"]
    assert len(found) == len(launched) + len(parts) + 2  # the tests on the device, and training with what time is left
    for line in launched:
        understood(line)
    composed: list[Any] = []

    def compose_only(overrides: list[str], figure: str, where: torch.device, *, warm: int, count: int) -> None:
        config = typed(compose(["prompt='a red mushroom'", *overrides]))
        check(config)
        composed.append((config.experiment, config.camera.sizes, config.preset))

    monkeypatch.setattr(device, "steps", compose_only)
    monkeypatch.setitem(sys.modules, "real_size_folders", ModuleType("real_size_folders"))
    for name, value in {"MODELS": {"sd15": None, "sd3": None}, "build": lambda *_: None}.items():
        setattr(sys.modules["real_size_folders"], name, value)
    for words in parts:
        monkeypatch.setattr(sys, "argv", ["device.py", *words, "--device", "cpu"])
        options = device.options_of()
        if options.part in ("lift", "rfds"):
            device.PARTS[options.part](options, torch.device("cpu"))
    assert {line[0] for line in parts} == set(device.PARTS)
    assert len(composed) == 3 + 7 and ("rfds_rev_sd3", [512], "low_vram") in composed


def test_every_command_of_the_training_script_is_understood(tmp_path: Path) -> None:
    *trained, figures = commands("train_on_gpu.sh", tmp_path, str(tmp_path / "weights"), "100")
    for line in trained:
        assert line[0] == "launch.py" and f"train_tiny.folder={tmp_path / 'weights'}" in line
        understood(line)
    shares = [int(word.split("=")[1]) for line in trained for word in line if word.startswith("train_tiny.seconds=")]
    assert len(shares) == len(trained) >= 5 and sum(shares) <= 100
    assert figures[:3] == ["bench/prior.py", "--prior", "tiny_instaflow"]
    assert Path(figures[4]).parent == tmp_path / "weights"
