"""Where results go and what commands leave behind: moved runs, refused commands, looks at another size, closed pipes,
variables and bytes in paths and prompts.

Seen to fail: the stored exp_root_dir taken for a moved run, folders of refused commands left, stale frames left, a mesh
replaced without a word, finished prompts run again, the status left at "running", an interpolation taken literally,
each kind of thing in the place of a file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from threestudio_rf.app.cli import main
from threestudio_rf.app.errors import PATHS, UserError, as_utf8, user_path
from threestudio_rf.app.run.folder import discard, missing, slug
from threestudio_rf.app.settings.config import leaves

TEXTS = {"task", "refine_with", "experiment", "preset", "prompt", "negative_prompt", "name", "tag", "device"}
TEXTS |= {"scene.name", "prior.name", "loss.name"}
TEXTS |= {"loss.neg_prompt", "loss.target_prompt", "loss.artifact_prompt", "edit.source", "grid.name", "grid.jobs"}
TEXTS |= {"prior.revision", "prior.variant", "prior.view_pattern", "prior.lora", "prior.delta", "prior.delta_from"}
TEXTS |= {f"prior.prompt_{view}" for view in ("side", "front", "back", "overhead")}
SAMPLE = ["task=sample", "prior=gaussian", "prompt=a red ball", "n=1", "steps=2"]


@pytest.fixture
def moved(finished: Path, tmp_path: Path, monkeypatch) -> Path:
    """A finished run at another place, with nothing below the folder that it was made in."""
    folder = shutil.copytree(finished, tmp_path / "elsewhere" / "renamed")
    monkeypatch.chdir(tmp_path)
    return folder


def test_results_of_a_moved_run_join_it_where_it_lies(moved: Path, launcher, finished: Path, tmp_path: Path) -> None:
    before = sorted(finished.parents[1].rglob("*"))
    (moved / "save/it6-export/model.ply").unlink()
    code, folder, _, err = launcher("task=export", "export.formats=[ply]", f"resume={moved}")
    assert code == 0 and folder == moved, err
    assert (moved / "save/it6-export/model.ply").exists() and not (tmp_path / "outputs").exists()
    assert sorted(finished.parents[1].rglob("*")) == before
    code, folder, _, err = launcher("mode=validate", f"resume={moved}", f"exp_root_dir={tmp_path}/other")
    assert code == 0 and folder.parents[1] == tmp_path / "other", "an exp_root_dir that is named is taken"


def test_a_look_at_another_size_leaves_no_stale_frame_and_says_what_it_replaces(moved: Path, launcher) -> None:
    code, _, out, _ = launcher("mode=test", "camera.test_views=1", f"resume={moved}")
    assert code == 0 and [path.name for path in (moved / "save/it6-test").iterdir()] == ["0.png"]
    launcher("mode=validate", "camera.validation_views=3", f"resume={moved}")
    launcher("mode=validate", "camera.validation_views=2", f"resume={moved}")
    assert sorted(path.name for path in (moved / "save").glob("it6-?.png")) == ["it6-0.png", "it6-1.png"]
    code, _, out, _ = launcher("task=export", "export.formats=[ply]", f"resume={moved}")
    assert code == 0 and "model.ply in the place of an earlier one" in out
    assert "left from an earlier export: model.glb, " in out and "model.obj" in out


@pytest.mark.parametrize(
    "line",
    [
        ["task=edit", "prior=gaussian", "prompt=blue", "image=/no/such.png"],
        ["task=sample", "prior=sd", "prior.path=/no/such/folder", "prompt=x"],
        ["task=grid"],
    ],
)
def test_a_refused_command_leaves_nothing_behind(launcher, tmp_path: Path, line: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    for root in ("new/outputs", "mine"):
        code, folder, out, err = launcher(*line, f"exp_root_dir={tmp_path}/{root}")
        assert code == 2 and folder is None and "run: " not in out, err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_what_holds_more_than_a_record_is_never_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    made = missing(folder)
    assert made == [folder, folder.parent]
    (folder / "save").mkdir(parents=True)
    (folder / "log.txt").touch()
    (folder / "save/0.png").touch()
    assert not discard(folder, made) and (folder / "log.txt").exists()
    (folder / "save/0.png").unlink()
    assert discard(folder, made) and not (tmp_path / "a").exists()


def test_a_folder_that_is_no_run_is_told_with_the_newest_run_in_it(moved: Path, launcher, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for folder, words in (
        (moved.parent, f"resume={moved.parent}: the folder is no run, .*; the newest run in it is {moved}"),
        (tmp_path, f"the newest run in it is {moved}"),
        (moved / "save", f"the folder is no run, .*; it lies in the run {moved}"),
        (tmp_path / "nothing", "the folder is no run, which has its checkpoints in ckpts$"),
    ):
        code, _, _, err = launcher("mode=validate", f"resume={folder}")
        assert code == 2 and re.search(words, err.strip()), err
    assert launcher("mode=validate", f"resume={moved}/ckpts")[0] == 0


def test_a_sample_of_a_runs_prior_does_not_touch_the_run(moved: Path, launcher, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    code, folder, _, err = launcher("task=sample", "n=1", "steps=2", "prompt=red", f"resume={moved}")
    assert code == 0 and folder is not None and moved not in (folder, *folder.parents), err
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before


def test_prompts_that_are_finished_with_these_settings_are_not_run_again(launcher, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a red ball\na blue cube\n")
    line = [*SAMPLE[:2], *SAMPLE[3:], f"prompt_file={tmp_path}/list.txt", f"exp_root_dir={tmp_path}/out"]
    assert launcher(*line)[0] == 0
    runs = sorted((tmp_path / "out/sample").iterdir())
    (runs[0] / "run.json").write_text(json.dumps(json.loads((runs[0] / "run.json").read_text()) | {"status": "failed"}))
    code, _, out, _ = launcher(*line)
    assert code == 0 and f"finished with these settings: {runs[1]}" in out and out.count("run: ") == 1
    assert launcher(*line, "seed=1")[2].count("run: ") == 2, "other settings are another run"


def test_a_closed_pipe_ends_a_run_with_its_status_written(launcher, tmp_path: Path, monkeypatch) -> None:
    def closed(config):
        def work(run):
            raise BrokenPipeError(32, "Broken pipe")

        return work

    monkeypatch.setattr(main, "command_of", closed)
    code, _, _, err = launcher(*SAMPLE, f"exp_root_dir={tmp_path}")
    (folder,) = (tmp_path / "sample").iterdir()
    assert code == 1 and err == "" and not (folder / ".lock").exists()
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"


def test_every_setting_of_free_text_is_a_path_or_a_text() -> None:
    free = {key for key, leaf in leaves().items() if leaf.type in (str, str | None) and "choices" not in leaf.rule}
    assert free == TEXTS | set(PATHS), "a new setting belongs to PATHS of app/errors.py or to TEXTS here"


def test_variables_are_resolved_in_paths_and_literal_in_prompts(launcher, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path))
    line = [*SAMPLE[:2], "prompt=${oc.env:PLACE}", *SAMPLE[3:]]
    code, folder, _, err = launcher(*line, "exp_root_dir=${oc.env:PLACE}/out")
    assert code == 0 and folder is not None and folder.parents[1] == tmp_path / "out", err
    stored = yaml.safe_load((folder / "configs/parsed.yaml").read_text())
    assert stored["exp_root_dir"] == f"{tmp_path}/out" and stored["prompt"] == "${oc.env:PLACE}"
    for value in ("${oc.env:NO_SUCH_VARIABLE}/out", "${now:%Y}", "${name}/x"):
        code, _, _, err = launcher(*SAMPLE, f"exp_root_dir={value}")
        assert code == 2 and f"exp_root_dir={value}: expected a path" in err and len(err.splitlines()) == 1
    assert str(user_path("${oc.env:NO_SUCH_VARIABLE,/x}/y", "resume")) == "/x/y"
    for value in ("$PLACE/out", "%PLACE%/out", f"{tmp_path}/$PLACE"):
        with pytest.raises(UserError, match=r"PLACE%? is for a shell, without quotes; here it is \$\{oc\.env:PLACE\}"):
            user_path(value, "resume")
    (tmp_path / "$PLACE").mkdir()
    assert user_path(f"{tmp_path}/$PLACE/x", "resume").name == "x" and user_path("50%/$NONE", "resume").name == "$NONE"
    for wrong in ("a\0b", "x" * 5000):
        with pytest.raises(UserError, match="resume="):
            user_path(wrong, "resume")


def test_bytes_that_are_no_text_are_refused_in_prompts_and_kept_in_paths(launcher, tmp_path: Path) -> None:
    from PIL import Image

    code, folder, _, err = launcher(*SAMPLE[:2], "prompt=caf\udce9", *SAMPLE[3:], f"exp_root_dir={tmp_path}/out")
    assert code == 2 and folder is None and "prompt=caf\ufffd: expected text in UTF-8" in err
    picture = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.new("RGB", (8, 8), "red").save(picture)
    line = ["task=edit", "prior=gaussian", "source=red", "prompt=blue", f"image={picture}"]
    code, folder, _, err = launcher(*line, f"exp_root_dir={tmp_path}/out")
    assert code == 0 and folder is not None, err
    assert (folder / "save" / Path(picture).name).exists() and "udce9" in (folder / "cmd.txt").read_text()
    assert yaml.safe_load((folder / "configs/parsed.yaml").read_text())["edit"]["image"] == picture


def test_text_given_in_utf_8_is_text_in_every_locale(monkeypatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    given = "prompt=红球 é".encode().decode("ascii", "surrogateescape")
    assert as_utf8([given, "a"]) == ["prompt=红球 é", "a"] and as_utf8(["caf\udce9"]) == ["caf\udce9"]

    def ascii_only(name: str) -> bytes:
        return name.encode("ascii", "surrogateescape")

    monkeypatch.setattr(os, "fsencode", ascii_only)
    assert slug("红球 é").startswith("--_-") and slug("a red ball") == "a_red_ball"


def test_a_sweep_with_a_value_that_cannot_be_is_refused_in_one_line_before_any_run(launcher, tmp_path: Path) -> None:
    line = ["-m", *SAMPLE, f"exp_root_dir={tmp_path}/out"]
    for item, words in (
        ("seed=0,abc", "seed"),
        ("seed=abc", "seed"),
        ("prior=gaussian,tiny_sd9", "prior=tiny_sd9: expected one of"),
        ("sample.cfg=1,x", "sample.cfg"),
        ("seed=[1", "seed"),
        ("sample.sampler=ddim,foo", "sample.sampler=foo: expected one of"),
        ("steps=1,0", "sample.steps=0: expected at least 1"),
    ):
        code, _, _, err = launcher(*line, item)
        assert code == 2 and words in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "out").exists()


def test_a_value_of_several_lines_is_told_in_one(launcher, tmp_path: Path) -> None:
    for item in ("preset=\n", "sample.sampler=a\nb"):
        code, _, _, err = launcher(*SAMPLE, item, f"exp_root_dir={tmp_path}/out")
        assert code == 2 and len(err.strip().splitlines()) == 1 and item.partition("=")[0] in err


@pytest.mark.parametrize(
    ("name", "made", "line", "words"),
    [
        ("run.json", "folder", "trainer.steps=7", "run.json is a folder, expected a file; move it elsewhere"),
        ("configs/parsed.yaml", "folder", "trainer.steps=7", "parsed.yaml is a folder, expected a file"),
        ("save", "file", "task=export", "save is no folder, expected one"),
        ("save/it6-test", "loop", "mode=test", "it6-test is no folder, expected one"),
        ("save/it6-export/model.glb", "folder", "task=export", "model.glb is a folder, expected a file"),
        ("ckpts", "file", "mode=validate", "last.ckpt: No such"),
        ("ckpts/last.ckpt", "pipe", "mode=validate", ""),
        ("ckpts/manifest.json", "pipe", "mode=validate", ""),
        ("cmd.txt", "pipe", "mode=validate", ""),
        ("log.txt", "pipe", "mode=validate", ""),
        ("metrics.json", "pipe", "mode=validate", ""),
        ("csv_logs/metrics.csv", "loop", "trainer.steps=7", ""),
    ],
)
def test_what_is_no_file_in_a_run_is_named_or_an_older_file_taken(moved, launcher, name, made, line, words) -> None:
    place = moved / name
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    if made == "folder":
        (place / "inside").mkdir(parents=True)
    elif made == "file":
        place.write_text("x")
    elif made == "loop":
        place.symlink_to(place)
    else:
        os.mkfifo(place)
    code, _, _, err = launcher(line, "camera.test_views=1", "export.formats=[ply]", f"resume={moved}")
    last = err.strip().splitlines()[-1] if err.strip() else ""
    assert (code, words in last) == (2 if words else 0, True) and "Error" not in err, err


def test_a_place_that_may_not_be_written_is_the_users_to_mend(moved: Path, launcher, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(moved / "cmd.txt"))

    monkeypatch.setattr(main, "write_command", refused)
    code, _, _, err = launcher("mode=validate", f"resume={moved}")
    assert code == 2 and err.strip().splitlines()[-1] == f"error: {moved}/cmd.txt: Permission denied"
