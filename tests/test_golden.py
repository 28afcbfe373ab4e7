"""One tiny end-to-end run per task with the embedded prior. Thresholds are far below what the default settings reach:
they say that the parts fit together, `bench/` says how good they are.

Seen to fail: the velocity's sign turned in the adapter, the view prompts replaced by empty ones.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threestudio_rf.app.cli.start import start
from threestudio_rf.app.report.score import KEYS

SHORT = ["trainer.steps=24", "trainer.validate_every=12", "checkpoint.every=18", "camera.test_views=4"]
SHORT += ["camera.eval_size=64", "camera.video_scale=1", "trainer.progress=3", "export.resolution=32"]


CALLS = 24 + 12
"""Of those steps: the prompt in each, no prompt where some view hears guidance (`loss.guidance_interval`)."""


def run_of(root: Path, *line: str) -> Path:
    """Start a command that must succeed and return its run folder."""
    before = set(root.glob("*/*"))
    assert start([*line, f"exp_root_dir={root}"]) == 0
    (folder,) = set(root.glob("*/*")) - before
    return folder


@pytest.fixture(scope="module")
def lifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("golden"), "prompt=a red mushroom", *SHORT)


def test_lift_golden(lifted: Path) -> None:
    figures = json.loads((lifted / "metrics.json").read_text())
    assert tuple(figures) == KEYS
    assert figures["silhouette_iou"] > 0.5 and figures["network_calls"] == CALLS
    assert figures["chamfer"] is not None and figures["janus"] is None
    picture = np.asarray(Image.open(lifted / "save/it24-test/0.png")).astype(float)
    middle = picture[24:36, 24:40].mean(axis=(0, 1))
    assert middle[0] > 1.5 * middle[1:].max(), "the middle of a red mushroom is red"
    corner = picture[:6, :6].mean(axis=(0, 1))
    assert (abs(corner - 0.7 * 255) < 12).all(), "and its corner shows the grey background"


def test_evaluate_and_export_golden(lifted: Path) -> None:
    first = json.loads((lifted / "metrics.json").read_text())
    assert start(["task=evaluate", f"resume={lifted}"]) == 0
    again = json.loads((lifted / "metrics.json").read_text())
    for key in ("recognised", "volume_iou", "silhouette_iou", "colour_error"):
        assert math.isclose(again[key], first[key], abs_tol=1e-9)
    assert start(["task=export", f"resume={lifted}", "export.resolution=24", "export.formats=[glb]"]) == 0


def test_sample_golden(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "task=sample", "prompt=a blue ball", "sample.n=2", "sample.steps=10")
    for i in range(2):
        picture = np.asarray(Image.open(folder / f"save/{i:05d}.png")).astype(float)
        assert picture.shape == (128, 128, 3)
        middle = picture[56:72, 56:72].mean(axis=(0, 1))
        assert middle[2] > 1.5 * middle[:2].max()
