"""A run's folder says how it was made: no look rewrites it, and a new run from it does not go on with the old one.

Seen to fail: resume kept in parsed.yaml or taken from a stored one, the record rewritten by mode=test, by task=export,
by a resumed run that has nothing to train; a file given with resume= not listened to; the page left as it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

RECORD = ("configs/parsed.yaml", "configs/raw.yaml", "run.json")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "outputs" / "tiny" / finished.name)


def record(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in RECORD}


@pytest.mark.parametrize(
    "line",
    [
        ["seed=5", "camera.test_views=2"],
        ["mode=test", "camera.test_views=1"],
        ["mode=validate"],
        ["task=export", "export.formats=[ply]"],
        ["task=evaluate", "evaluate.size=8"],
    ],
)
def test_a_look_leaves_the_record_as_it_is(run: Path, launcher, line: list[str]) -> None:
    before, commands = record(run), (run / "cmd.txt").read_text()
    code, folder, _, err = launcher(*line, f"resume={run}", f"exp_root_dir={run.parents[1]}")
    assert code == 0 and folder == run, err
    assert record(run) == before
    assert (run / "cmd.txt").read_text().startswith(commands) and line[0] in (run / "cmd.txt").read_text()
    assert line[0] in (run / "index.html").read_text(), "the page shows the new look"


def test_a_run_that_goes_on_is_recorded_without_where_it_came_from(run: Path, launcher) -> None:
    code, folder, _, err = launcher(f"resume={run}", "trainer.steps=8", f"exp_root_dir={run.parents[1]}")
    assert code == 0 and folder == run, err
    stored = yaml.safe_load((run / "configs/parsed.yaml").read_text())
    assert stored["trainer"]["steps"] == 8 and stored["resume"] == "" and stored["weights"] == ""


def test_a_new_run_from_a_record_is_new_whatever_the_record_went_on_with(run: Path, launcher, tmp_path: Path) -> None:
    file = run / "configs/parsed.yaml"
    stored = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(stored | {"resume": str(run), "mode": "test"}))
    before = sorted(path.name for path in (run / "ckpts").iterdir())
    line = ["--config", str(file), "--train", "system.prompt_processor.prompt=a blue cone"]
    code, folder, _, err = launcher(*line, f"exp_root_dir={tmp_path}/new")
    assert code == 0 and folder is not None and folder != run, err
    assert "blue_cone" in folder.name and sorted(path.name for path in (run / "ckpts").iterdir()) == before
    code, other, _, err = launcher("--config", str(file), f"weights={run}", f"exp_root_dir={tmp_path}/other")
    assert code == 0 and other is not None and other != run, err


def test_what_was_changed_in_a_record_counts_when_its_run_goes_on(run: Path, launcher) -> None:
    file = run / "configs/parsed.yaml"
    stored = yaml.safe_load(file.read_text())
    edited = run.parent / "edited.yaml"
    edited.write_text(yaml.safe_dump(stored | {"trainer": stored["trainer"] | {"steps": 8}}))
    code, folder, _, err = launcher("--config", str(edited), f"resume={run}", f"exp_root_dir={run.parents[1]}")
    assert code == 0 and folder == run, err
    assert yaml.safe_load(file.read_text())["trainer"]["steps"] == 8
    edited.write_text(yaml.safe_dump(stored | {"scene": stored["scene"] | {"radius": 3.0}}))
    code, _, _, err = launcher("--config", str(edited), f"resume={run}", f"exp_root_dir={run.parents[1]}")
    assert code == 2 and f"scene.radius: {stored['scene']['radius']} -> 3.0" in err
