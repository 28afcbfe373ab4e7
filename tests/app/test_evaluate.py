"""Figures of a finished run, and the warning about words that the embedded prior has never seen.

Mutations seen to fail: a key left out of KEYS, the check of the subject removed, the check of the judge removed, the
memory of the evaluation in place of the run's.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from threestudio_rf.app import console
from threestudio_rf.app.build import words
from threestudio_rf.app.report import score as evaluate
from threestudio_rf.app.tasks.output import result
from threestudio_rf.tiny.world.judge import Judge

KEYS = [
    "volume_iou",
    "silhouette_iou",
    "chamfer",
    "colour_error",
    "saturation",
    "janus",
    "recognised",
    "seconds",
    "network_calls",
    "seconds_to_right",
    "network_calls_to_right",
    "peak_memory_mb",
]


@pytest.fixture
def judged(monkeypatch):
    """An untrained judge in place of the one that ships."""
    torch.manual_seed(0)
    judge = Judge().eval()
    monkeypatch.setattr(evaluate, "verify_weights", lambda part: [])
    monkeypatch.setattr(evaluate, "load_judge", lambda folder: judge)


@pytest.fixture
def again(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "outputs" / "tiny" / finished.name)


def test_a_finished_run_gets_its_figures_as_a_table_and_as_json(judged, again, launcher, monkeypatch):
    monkeypatch.setattr(result, "peak_memory_mb", lambda: 1.0)  # the run itself took more, and that is kept
    line = ["task=evaluate", f"resume={again}", f"exp_root_dir={again.parents[1]}", "evaluate.size=16"]
    code, folder, out, _ = launcher(*line)
    assert code == 0 and folder == again
    found = json.loads((again / "metrics.json").read_text())
    assert list(found) == KEYS
    assert (
        0 <= found["recognised"] <= 1
        and 0 <= found["volume_iou"] <= 1
        and 0 <= found["silhouette_iou"] <= 1
        and found["chamfer"] > 0
    )
    assert found["janus"] is None and found["seconds"] > 0 and found["peak_memory_mb"] > 50
    assert found["network_calls"] == 6 + 5, "in one step no view hears guidance"
    for key in KEYS:
        assert f"\n{key} " in out or out.startswith(key)


def test_a_prompt_without_a_known_truth_is_an_error_that_names_the_world(judged, again, launcher):
    line = ["task=evaluate", f"resume={again}", f"exp_root_dir={again.parents[1]}", "prompt=a red hamburger"]
    code, _, _, err = launcher(*line)
    assert code == 2 and "'a red hamburger'" in err and "mushroom" in err and "purple" in err


def test_a_judge_that_is_not_whole_gives_no_figures(again, launcher, monkeypatch):
    monkeypatch.setattr(evaluate, "verify_weights", lambda part: [f"{part} differs"])
    code, _, _, err = launcher("task=evaluate", f"resume={again}", f"exp_root_dir={again.parents[1]}")
    assert code == 2 and "the judge is not whole: judge.safetensors differs" in err
    assert "recognised" not in json.loads((again / "metrics.json").read_text())


def test_an_unknown_word_is_named_with_what_is_known_and_what_else_to_use(monkeypatch, capfd):
    console.open_log("info")
    monkeypatch.setattr(words, "unknown_words", lambda prompt, folder: ["hamburger"])
    assert words.warn_unknown_words("a red hamburger", "tiny_sd3") == ["hamburger"]
    text = capfd.readouterr().err
    for part in ("warning: ", "hamburger", "mushroom", "purple", "prior.path=", "experiment=rfds_sd3"):
        assert part in text
    assert len(text.splitlines()) == 1
    monkeypatch.setattr(words, "unknown_words", lambda prompt, folder: [])
    assert words.warn_unknown_words("a red ball", "tiny_sd3") == [] and capfd.readouterr().err == ""
