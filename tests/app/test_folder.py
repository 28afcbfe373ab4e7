"""Run folders: names that no prompt can break, writability, locks, nothing secret in run.json.

Mutations seen to fail: `lstrip(".")` removed (traversal), RESERVED never matching, the cut by characters instead of
bytes, the start time left out of the lock's comparison (a process number that is used again), SECRET never matching.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run import folder as module
from threestudio_rf.app.run.folder import (
    Lock,
    create,
    latest,
    probe,
    run_of,
    slug,
    write_command,
    write_start,
    write_status,
)


@pytest.mark.parametrize(
    "text",
    [
        "A cactus with pink flowers",
        "a mother's hat, red (and blue) + 3.5-inch",
        "typographic ’apostrophe’",
        "Ein grüner Würfel",
        "一个红色的蘑菇",
    ],
)
def test_ordinary_prompts_only_lose_their_spaces(text):
    assert slug(text) == text.replace(" ", "_")


@pytest.mark.parametrize(
    "text",
    [
        "../../x",
        "..",
        ".",
        ".hidden",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "line\nbreak",
        "nul\0byte",
        "x" * 400,
        "é" * 100,
        "emoji 😀",
        "CON",
        "nul",
        "com1.txt",
        "aux.",
        "",
        "   ",
        'a:b*c?d"e<f>g|h',
        "\ud800",
        "[glob]*",
        "ﬁ ligature",
    ],
)
def test_every_text_is_one_safe_name_below_the_root(tmp_path, text):
    name = slug(text)
    assert name and len(name.encode()) <= 120
    assert not set(name) & set('/\\:*?"<>|[]\0\n') and name not in (".", "..") and name[0] != "."
    assert name.split(".")[0].upper() not in ("CON", "NUL", "AUX", "COM1")
    path = create(str(tmp_path / "out"), "tiny", text)
    assert path.parent == tmp_path / "out" / "tiny" and path.is_dir()
    assert create(str(tmp_path / "out"), text or "x", "a").resolve().is_relative_to((tmp_path / "out").resolve())


def test_a_changed_name_is_marked_so_that_two_prompts_never_share_it():
    assert slug("a/b") != slug("a-b") and slug("x" * 400) != slug("x" * 401)
    assert slug("a/b") == slug("a/b")


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    first, second = (create(str(tmp_path), "tiny", "a ball", now=0.0) for _ in range(2))
    assert first != second and second.name.startswith(first.name)


def test_a_root_that_cannot_be_written_is_refused_at_once(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for root in (file, file / "below"):
        with pytest.raises(UserError, match=r"cannot write to .*exp_root_dir"):
            create(str(root), "tiny", "a ball")


def test_a_read_only_folder_is_refused_at_once(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_bytes", refused)
    with pytest.raises(UserError, match="Permission denied"):
        probe(tmp_path)


def test_a_second_run_in_one_folder_is_refused_and_the_first_goes_on(tmp_path):
    code = (
        "import sys; from pathlib import Path; from threestudio_rf.app.run.folder import Lock\n"
        "Lock(Path(sys.argv[1])).take(); print('taken', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(UserError, match=f"in use by process {other.pid} on {socket.gethostname()}"):
            Lock(tmp_path).take()
    finally:
        other.kill()
        other.communicate()
    Lock(tmp_path).take()


def test_a_lock_of_a_dead_process_is_removed_even_when_its_number_is_used_again(tmp_path):
    lock = Lock(tmp_path)
    lock.path.write_text(json.dumps({"pid": os.getpid(), "started": 1.0, "host": socket.gethostname()}))
    lock.take()
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()
    assert not lock.path.exists()


def test_a_lock_of_another_machine_is_kept(tmp_path):
    lock = Lock(tmp_path)
    lock.path.write_text(json.dumps({"pid": 1, "started": 1.0, "host": "elsewhere"}))
    with pytest.raises(UserError, match=r"process 1 on elsewhere.*remove .*\.lock"):
        lock.take()


def test_a_lock_that_was_cut_is_removed_when_it_is_old(tmp_path):
    lock = Lock(tmp_path)
    lock.path.write_text("")
    with pytest.raises(UserError, match="another run is starting"):
        lock.take()
    os.utime(lock.path, (0, 0))
    lock.take()


def test_the_latest_run_is_the_last_one_that_has_a_checkpoint(tmp_path):
    made = [create(str(tmp_path), "tiny", "a ball", now=float(when)) for when in (1e9, 2e9, 3e9)]
    create(str(tmp_path), "tiny", "a ball, red")
    for path in made[:2]:
        (path / "ckpts").mkdir()
        (path / "ckpts" / "last.ckpt").write_bytes(b"")
    assert latest(str(tmp_path), "tiny", "a ball") == made[1]
    assert latest(str(tmp_path), "tiny", "a cone") is None
    assert run_of(made[1] / "ckpts" / "last.ckpt") == run_of(made[1] / "ckpts") == run_of(made[1]) == made[1]
    assert run_of(tmp_path / "other.ckpt") is None


def test_what_is_written_at_the_start_holds_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "also_secret")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    monkeypatch.setattr(module, "commit", lambda: "abc")
    write_start(tmp_path, parsed="a: 1\n", raw="b: 2\n", argv=["prompt=it's a ball"], prior="tiny_sd3")
    write_status(tmp_path, {"status": "finished"})
    text = (tmp_path / "run.json").read_text()
    found = json.loads(text)
    assert "secret" not in text and found["environment"]["HF_TOKEN"] == "***"
    assert found["environment"]["HF_HOME"] == "/somewhere"
    assert found["status"] == "finished" and found["versions"]["torch"] and found["commit"] == "abc"
    assert (tmp_path / "cmd.txt").read_text().strip().endswith("""launch.py 'prompt=it'"'"'s a ball'""")
    assert (tmp_path / "configs" / "parsed.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize(
    "owner",
    [
        {"pid": -1, "host": socket.gethostname(), "started": 1.0},
        {"pid": 10**30, "host": socket.gethostname(), "started": 1.0},
        {"pid": 1.5, "host": socket.gethostname(), "started": 1.0},
        {"pid": 1, "host": [], "started": "x"},
        {"pid": 1, "host": socket.gethostname(), "started": 10**400},
        {"pid": 1, "host": socket.gethostname(), "started": float("nan")},
        [1],
        None,
    ],
)
def test_a_lock_that_no_process_can_have_is_removed(tmp_path, owner):
    lock = Lock(tmp_path)
    lock.path.write_text(json.dumps(owner))
    os.utime(lock.path, (0, 0))
    lock.take()
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()


def test_a_lock_that_is_nested_too_deep_or_a_folder_is_no_lock(tmp_path):
    lock = Lock(tmp_path)
    lock.path.write_text("[" * 100_000)
    os.utime(lock.path, (0, 0))
    lock.take()
    lock.release()
    lock.path.mkdir()
    os.utime(lock.path, (0, 0))
    with pytest.raises(UserError, match="is no lock of a run"):
        lock.take()


@pytest.mark.parametrize("text", ["[1]", "7", "null", "[" * 100_000, "\xff", ""])
def test_a_status_that_is_no_object_is_written_anew(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    write_status(tmp_path, {"status": "finished"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"status": "finished"}


def test_commands_are_never_appended_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "cmd.txt").symlink_to(tmp_path / "theirs")
    write_command(tmp_path, ["seed=1"])
    assert (tmp_path / "theirs").read_text() == "theirs" and "seed=1" in (tmp_path / "cmd.txt").read_text()
