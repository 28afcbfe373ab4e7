"""Text to 3D from Python: the steps of the command line, without Hydra, whose state somebody else may own.

Seen to fail: another seed than the one given, the settings dropped, Hydra composed inside.
"""

from __future__ import annotations

import csv
import doctest
from pathlib import Path

import pytest
import torch

import threestudio_rf
from threestudio_rf.app import objects
from threestudio_rf.app.console import close_log
from threestudio_rf.app.errors import UserError

SMALL = {
    "camera.sizes": [16],
    "camera.views": [2],
    "camera.eval_size": 16,
    "camera.test_views": 2,
    "scene.encoding.log2_table": 8,
    "scene.encoding.levels": 2,
    "export.resolution": 12,
    "evaluate.size": 16,
}


def test_a_lift_takes_the_steps_of_the_command_line(launcher, tmp_path: Path) -> None:
    run = threestudio_rf.lift("a red ball", steps=4, seed=3, settings=SMALL)
    losses = [state.metrics["loss"] for state in run]
    line = [f"{key}={value}".replace(" ", "") for key, value in SMALL.items()]
    line += ["prompt=a red ball", "seed=3", "trainer.steps=4", "trainer.log_every=1", "trainer.validate_every=0"]
    code, folder, _, err = launcher(*line, f"exp_root_dir={tmp_path}")
    assert code == 0, err
    rows = list(csv.DictReader((folder / "csv_logs/metrics.csv").open()))
    assert losses == pytest.approx([float(row["loss"]) for row in rows], rel=1e-5)
    assert run.step == 4 and run.pictures(2).shape == (2, 3, 16, 16)


def test_what_was_reached_can_be_scored_and_saved_at_any_time(tmp_path: Path) -> None:
    run = threestudio_rf.lift("a red ball", steps=9, settings=SMALL)
    for state in run:
        if state.step == 1:
            break
    assert run.step == 2 and 0 <= run.figures["volume_iou"] <= 1
    files = {file.name for file in run.save(tmp_path / "ball").iterdir()}
    assert {"model.glb", "model.ply", "turntable.mp4", "front.png"} <= files
    assert next(state.step for state in run) == 2, "the loop goes on where it was left"


def test_it_works_inside_a_program_of_hydra() -> None:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    from threestudio_rf.app.settings.flags import CONFIGS

    with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        assert threestudio_rf.load_prior("gaussian", device="cpu").name == "gaussian"
        assert len(threestudio_rf.sample("red", prior="gaussian", n=1, steps=2)) == 1
        assert threestudio_rf.lift("a red ball", prior="gaussian", steps=1, settings=SMALL).step == 0
        assert GlobalHydra.instance().is_initialized()


def test_what_the_command_line_refuses_is_refused_here_too() -> None:
    with pytest.raises(UserError, match=r"trainer\.steps=0: expected at least 1"):
        threestudio_rf.lift("a red ball", steps=0)
    with pytest.raises(UserError, match="experiment=tinny"):
        threestudio_rf.lift("a red ball", experiment="tinny")
    with pytest.raises(UserError, match="the prompt is empty"):
        threestudio_rf.lift(" ")
    with pytest.raises(AttributeError, match="no attribute 'lyft'"):
        _ = threestudio_rf.lyft
    run = threestudio_rf.lift("a red hamburger", prior="gaussian", steps=1, settings=SMALL)
    with pytest.raises(UserError, match="truth is not known"):
        _ = run.figures


def test_the_example_of_the_docstring_runs() -> None:
    close_log()
    with torch.random.fork_rng(devices=[]):
        finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
        for example in finder.find(objects.lift, "lift", globs={"lift": objects.lift}):
            runner.run(example)
    assert runner.tries == 2 and runner.failures == 0
