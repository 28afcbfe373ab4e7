"""Every part of the factory of weights, from the command line: a step or two each, on one picture of every shape."""

from __future__ import annotations

import json
from pathlib import Path

from threestudio_rf.app.cli.start import start


def test_train_tiny_golden(tmp_path: Path) -> None:
    sizes = ["train_tiny.steps=1", "train_tiny.per_shape=1", "train_tiny.batch=2", f"train_tiny.folder={tmp_path}/t"]
    patches = ["train_tiny.steps=2", "train_tiny.discriminator=hinge", "train_tiny.perceptual=0.1"]
    for part in ("vae", "instaflow", "sd3", "sd", "sd_v", "judge"):
        more = patches if part == "vae" else []
        assert start(["task=train_tiny", f"train_tiny.part={part}", *sizes, *more, f"exp_root_dir={tmp_path}"]) == 0
    assert (tmp_path / "t/vae_adversarial.pt").exists()
    assert (tmp_path / "t/tiny-sd3/model_index.json").exists() and (tmp_path / "t/judge.safetensors").exists()
    scheduler = json.loads((tmp_path / "t/tiny-sd-v/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert json.loads((tmp_path / "t/vae.json").read_text())["psnr_mean_db"] > 5
