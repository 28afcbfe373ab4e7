"""Fault 21: a run that is killed with SIGKILL three times and resumed ends with bit-equal weights.

Seen to fail: `made.step` of the checkpoint ignored on resume (the run starts over and takes other steps).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import torch

from threestudio_rf.app.cli.start import start
from threestudio_rf.trainer.checkpoint import load


def kill_after(processes: Any, line: list[str], folder: Path, steps: int) -> None:
    """Start a run in a process of its own and kill it when its checkpoints have passed `steps`."""
    process = processes.Process(target=start, args=(line,))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        saved = [int(file.stem.split("-")[1]) for file in folder.glob("*/ckpts/step-*.ckpt")]
        if saved and max(saved) > steps:
            break
        time.sleep(0.02)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"


def test_a_run_that_is_killed_three_times_ends_bit_equal(small: list[str], tmp_path: Path, processes: Any) -> None:
    steps = ["trainer.steps=400", "checkpoint.every=2", "trainer.validate_every=0", "prompt=a red ball"]
    assert start([*small, *steps, "trainer.steps=30", f"exp_root_dir={tmp_path}/whole"]) == 0
    (whole,) = (tmp_path / "whole/tiny").iterdir()
    kill_after(processes, [*small, *steps, f"exp_root_dir={tmp_path}/part"], tmp_path / "part/tiny", 2)
    (part,) = (tmp_path / "part/tiny").iterdir()
    for passed in (5, 8):
        kill_after(processes, [f"resume={part}", "trainer.steps=400"], part.parent, passed)
    assert load(part).state["step"] < 30
    assert start([f"resume={part}", "trainer.steps=30"]) == 0
    one, other = (load(folder).state["scene"] for folder in (whole, part))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
