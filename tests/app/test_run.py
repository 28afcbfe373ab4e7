"""Whole runs: files, resume, signals, damage, full disks, other tasks.

Mutations seen to fail: the optimiser's state not loaded on resume (bit-equal), `merge_stored` without its error
(structural change), `made.save()` left out when a signal came, the OSError handler of `Lift.save` removed (full disk).
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import sys

import pytest
import torch
import yaml

from threestudio_rf.app import console
from threestudio_rf.app.build.scene import pick_dtype
from threestudio_rf.app.console import Progress
from threestudio_rf.app.run.folder import Lock
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.app.tasks import lift
from threestudio_rf.trainer.checkpoint import load
from threestudio_rf.trainer.log import Metrics


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run below its own root."""
    copy = tmp_path / "outputs" / "tiny" / finished.name
    shutil.copytree(finished, copy)
    return copy


def weights(folder) -> dict[str, torch.Tensor]:
    return load(folder).state["scene"]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_the_tree_that_threestudio_and_t3bench_know(finished):
    assert finished.name.startswith("a_red_ball@")
    expected = ["cmd.txt", "log.txt", "run.json", "configs/parsed.yaml", "configs/raw.yaml", "csv_logs/metrics.csv"]
    expected += ["ckpts/last.ckpt", "ckpts/manifest.json", "ckpts/step-0000004.ckpt", "ckpts/step-0000006.ckpt"]
    expected += ["save/it4-0.png", "save/it6-test/0.png", "save/it6-test/1.png", "save/it6-test.mp4"]
    expected += ["save/it6-test.gif", "save/it6-sheet.png"]
    expected += [f"save/it6-export/model.{kind}" for kind in ("glb", "obj", "ply")]
    assert [name for name in expected if not (finished / name).exists()] == []
    assert not (finished / ".lock").exists() and not list(finished.rglob("*.tmp.*"))
    assert not (finished / "ckpts/step-0000002.ckpt").exists()
    steps = [line.split(",")[0] for line in (finished / "csv_logs/metrics.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4", "6"]
    assert json.loads((finished / "run.json").read_text())["status"] == "finished"
    assert yaml.safe_load((finished / "configs/parsed.yaml").read_text())["prompt"] == "a red ball"


def test_a_run_that_is_resumed_ends_bit_equal_to_one_that_was_not(small, finished, launcher, tmp_path):
    line = [*small, "prompt=a red ball", f"exp_root_dir={tmp_path}"]
    code, folder, _, _ = launcher(*line, "trainer.steps=3", "checkpoint.every=0")
    assert code == 0 and not same(weights(folder), weights(finished))
    code, resumed, out, _ = launcher(f"resume={folder}", "trainer.steps=6", f"exp_root_dir={tmp_path}")
    assert code == 0 and resumed == folder
    assert "changed on resume: trainer.steps: 3 -> 6" in out
    assert same(weights(folder), weights(finished))
    rows = [Metrics(run / "csv_logs/metrics.csv").rows()[-1] for run in (folder, finished)]
    assert [row.pop("seconds") > 0 for row in rows] == [True, True] and rows[0] == rows[1]
    assert len((folder / "cmd.txt").read_text().splitlines()) == 2


def test_latest_goes_on_with_the_last_run_of_the_prompt(small, again, launcher):
    code, folder, out, _ = launcher(*small, "prompt=a red ball", f"exp_root_dir={again.parents[1]}", "resume=latest")
    assert code == 0 and folder == again and "nothing to train" in out


def test_a_run_that_starts_from_stored_weights_is_a_new_run_with_its_own_settings(small, finished, launcher, tmp_path):
    line = [*small, "prompt=a blue ball", "prior.std=0.2", f"system.weights={finished}", f"exp_root_dir={tmp_path}"]
    code, folder, out, _ = launcher(*line, "trainer.steps=1", "optim.lr_encoding=0", "optim.lr_networks=0")
    assert code == 0 and folder.parent == tmp_path / "tiny" and folder.name.startswith("a_blue_ball@")
    assert load(folder).state["step"] == 1 and "changed on resume" not in out
    stored, table = weights(finished), "field.encoding.table"
    assert torch.equal(weights(folder)[table], stored[table])
    code, _, _, err = launcher(*line, "scene.encoding.levels=3")
    assert code == 2 and "scene.encoding.levels: 2 -> 3" in err


def asking(monkeypatch, number, at=3):
    """Send this process a signal when `at` steps are finished."""
    real = Progress.update

    def update(self, step, values):
        real(self, step, values)
        if step >= at:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "update", update)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(small, name, code, launcher, tmp_path, monkeypatch):
    asking(monkeypatch, getattr(signal, name))
    before = signal.getsignal(getattr(signal, name))
    line = [*small, "prompt=a red ball", f"exp_root_dir={tmp_path}", "checkpoint.every=0"]
    found, folder, out, _ = launcher(*line)
    assert found == code and signal.getsignal(getattr(signal, name)) == before
    assert load(folder).state["step"] == 3
    assert f"python launch.py resume={folder}" in out and out.splitlines()[-1] == f"run: {folder}"
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not (folder / ".lock").exists()


def test_a_second_interrupt_stops_at_once(small, launcher, tmp_path, monkeypatch):
    asking(monkeypatch, signal.SIGINT)
    saved = []

    def slow(self):
        saved.append(self.step)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(lift.Lift, "save", slow)
    code, folder, out, _ = launcher(*small, "prompt=a red ball", f"exp_root_dir={tmp_path}", "checkpoint.every=0")
    assert (code, saved) == (130, [3])
    assert out.splitlines()[-1] == f"run: {folder}" and not (folder / ".lock").exists()


def test_a_changed_scene_is_refused_by_key_and_a_changed_schedule_is_logged(again, launcher):
    line = [f"resume={again}", f"exp_root_dir={again.parents[1]}"]
    code, _, _, err = launcher(*line, "scene.encoding.levels=3", "prior=tiny_sd3")
    assert code == 2 and "scene.encoding.levels: 2 -> 3" in err and "prior.name: gaussian -> tiny_sd3" in err
    code, _, out, _ = launcher(*line, "optim.lr_encoding=0.5", "trainer.steps=7")
    assert code == 0 and "changed on resume: optim.lr_encoding: 0.01 -> 0.5" in out
    assert load(again).state["step"] == 7


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_falls_back_with_a_warning(damage, again, launcher):
    for path in (again / "ckpts" / "step-0000006.ckpt", again / "ckpts" / "last.ckpt"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(bytes(data[:1000]) if damage == "cut" else bytes(data))
    code, folder, _, err = launcher(f"resume={again}", f"exp_root_dir={again.parents[1]}", "trainer.steps=6")
    assert code == 0 and folder == again
    assert "warning: " in err and "damaged" in err and "step-0000004.ckpt (step 4)" in err
    assert load(again).passed_over == []


def test_a_malicious_checkpoint_runs_nothing(small, launcher, tmp_path):
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"scene": Evil()}))
    code, _, _, err = launcher(*small, "prompt=a red ball", f"resume={tmp_path}/evil.ckpt", f"exp_root_dir={tmp_path}")
    assert code == 2 and not canary.exists()
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and "weights_only" not in err


def test_two_runs_in_one_folder_are_refused(again, launcher):
    lock = Lock(again)
    lock.take()
    code, _, _, err = launcher(f"resume={again}", f"exp_root_dir={again.parents[1]}")
    assert code == 2 and "in use by process" in err and lock.path.exists()


def test_a_full_disk_is_a_warning_while_it_runs_and_exit_code_one_for_the_final_files(
    small, launcher, tmp_path, monkeypatch
):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = Progress.update

    def update(self, step, values):
        real(self, step, values)
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))

    monkeypatch.setattr(Progress, "update", update)
    try:
        code, folder, out, err = launcher(*small, "prompt=a red ball", f"exp_root_dir={tmp_path}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and "no mesh: " in err and "Traceback" not in err and "Logging error" not in err
    for step in (4, 6):
        assert f"warning: no checkpoint of step {step} (File too large); the one before is kept" in err
    assert out.splitlines()[-1] == f"run: {folder}"
    assert load(folder).state["step"] == 2 and load(folder).passed_over == []
    assert not list(folder.rglob("*.tmp.*")) and not list(folder.glob("save/*-export/*"))


def test_export_validate_and_test_join_the_run_or_go_where_they_are_told(again, launcher, tmp_path):
    shutil.rmtree(again / "save")
    root = f"exp_root_dir={again.parents[1]}"
    code, folder, _, _ = launcher("--validate", f"resume={again}", root)
    assert (code, folder) == (0, again) and (again / "save/it6-0.png").exists()
    code, folder, _, _ = launcher("--test", f"resume={again}", root)
    assert (code, folder) == (0, again) and (again / "save/it6-test.mp4").exists()
    last = again / "ckpts/last.ckpt"
    line = ["--config", "configs/tiny.yaml", "--export", "--gpu", "0", f"resume={last}"]
    line += ["system.prompt_processor.prompt=a red ball", "system.exporter_type=mesh-exporter"]
    line += ["system.exporter.context_type=cuda", "system.geometry.isosurface_method=mc-cpu"]
    line += ["system.geometry.isosurface_resolution=10", f"exp_root_dir={tmp_path}/outputs_mesh"]
    code, folder, _, _ = launcher(*line)
    assert code == 0 and folder.parent == tmp_path / "outputs_mesh" / "tiny" and folder.name.startswith("a_red_ball@")
    assert (folder / "save/it6-export/model.obj").exists()


def test_a_level_without_a_surface_falls_back_to_the_automatic_one(again, launcher):
    line = ["task=export", f"resume={again}", f"exp_root_dir={again.parents[1]}"]
    code, _, _, err = launcher(*line, "export.threshold=1e6")
    assert code == 0 and "export.threshold" in err and "the automatic level is used" in err


def test_pictures_are_sampled_alike_whatever_the_batch(launcher, tmp_path):
    line = ["task=sample", "prior=gaussian", "prompt=a red ball", "sample.n=3", "sample.steps=3"]
    found = []
    for batch in (1, 2):
        code, folder, _, _ = launcher(*line, f"sample.batch={batch}", f"exp_root_dir={tmp_path}")
        assert code == 0 and (folder / "save/sheet.png").exists()
        found.append([(folder / f"save/0000{i}.png").read_bytes() for i in range(3)])
    assert found[0] == found[1] and len(set(found[0])) == 3
    for sampler, eta in (("midpoint", 0), ("ddim", 1)):
        assert launcher(*line, f"sample.sampler={sampler}", f"eta={eta}", f"exp_root_dir={tmp_path}")[0] == 0


def test_the_doctor_tells_versions_backends_weights_and_space(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, folder, out, _ = launcher("task=doctor", f"exp_root_dir={tmp_path}", "device=cpu")
    assert code in (0, 1)
    for word in (
        "torch ",
        "device cpu",
        "hash grid: torch",
        "marching: torch",
        "weights: ",
        "GB free",
        "GiB are free",
        "HF_TOKEN=***",
    ):
        assert word in out, word
    assert "hf_secret" not in out and (folder / "doctor.txt").exists()


def test_prompts_of_a_file_are_run_one_after_the_other_and_failures_listed(launcher, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red ball\r\n\r\n  a blue cone \r\na red ball\r\n".encode())
    line = ["task=sample", "prior=gaussian", f"prompt_file={file}", "sample.n=1", "sample.steps=2"]
    code, _, out, _ = launcher(*line, f"exp_root_dir={tmp_path}")
    assert code == 0 and "run 1 of 2: a red ball" in out and "run 2 of 2: a blue cone" in out
    assert "2 of 2 runs are good" in out and len(list((tmp_path / "sample").iterdir())) == 2
    file.write_text("a red ball\nit's a cone, blue")
    code, _, out, _ = launcher(*line, f"exp_root_dir={tmp_path}", "grid.jobs=2")
    assert code == 0 and out.count("finished with these settings") == 1 and out.count("run: ") == 1
    assert "2 of 2 runs are good" in out and sum("cone,_blue@" in x.name for x in (tmp_path / "sample").iterdir()) == 1


def test_a_sweep_makes_one_run_for_each_combination(launcher, tmp_path):
    line = ["-m", "task=sample", "prior=gaussian", "prompt='a/b','c d, e'", "sample.n=1", "sample.steps=2"]
    code, _, out, _ = launcher(*line, "seed=1,2", f"exp_root_dir={tmp_path}")
    assert out.count("wrote ") == 4 == out.count("run: ")
    names = sorted(path.name for path in (tmp_path / "sample").iterdir())
    assert code == 0 and len(names) == 4
    assert [name.rsplit("-", 1)[1] for name in names] == ["seed1", "seed2", "seed1", "seed2"]
    assert names[0].startswith("a-b-") and names[2].startswith("c_d,_e@")


def test_half_precision_on_a_cpu_becomes_single_with_a_notice(capfd):
    console.open_log("info")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype(PriorConfig(name="sd3", dtype="fp16"), cpu) == torch.float32
    assert "prior.dtype=fp16 is slower than fp32 on a CPU; fp32 is used" in capfd.readouterr().err
    assert pick_dtype(PriorConfig(name="sd3", dtype="fp16"), cuda) == torch.float16
    assert pick_dtype(PriorConfig(name="sd3", dtype="bf16"), cpu) == torch.bfloat16
    assert pick_dtype(PriorConfig(name="sd3"), cpu) == torch.float32
    assert pick_dtype(PriorConfig(name="sd3"), cuda) == torch.bfloat16
    assert capfd.readouterr().err == ""


def test_a_missing_extra_says_how_to_get_it_and_the_run_goes_on(small, launcher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, _, _, err = launcher(*small, "prompt=a red ball", "wandb=true", "trainer.steps=1", f"exp_root_dir={tmp_path}")
    assert code == 0 and "pip install wandb" in err and "metrics.csv" in err and "Traceback" not in err


def test_a_failure_is_one_line_and_the_traceback_is_in_the_log(small, launcher, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr(lift, "watch", broken)
    code, folder, out, err = launcher(*small, "prompt=a red ball", f"exp_root_dir={tmp_path}")
    assert code == 1 and f"error: somewhere deep (the traceback is in {folder}/log.txt)" in err
    assert "Traceback" not in out + err and "ZeroDivision" not in out + err
    assert "Traceback" in (folder / "log.txt").read_text()
    assert load(folder).state["step"] == 2
