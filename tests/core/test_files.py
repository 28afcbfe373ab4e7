"""Files appear whole or not at all, links are not followed, and what a killed process left is cleaned.

Seen to fail: the second file replaced before the first is on the disk, writing through a link, leftovers kept.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from threestudio_rf.core.files import (
    own_file,
    read_bytes,
    read_text,
    remove_leftovers,
    temporary,
    write_files,
    write_text,
)


def test_all_files_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "a" / "one.txt", tmp_path / "two.txt"
    write_files({one: b"1", two: b"2"})
    calls: list[int] = []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_files({one: b"new", two: b"new"})
    assert one.read_bytes() == b"1" and two.read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "one.txt", "two.txt"]
    with pytest.raises(ValueError, match="empty file"):
        write_files({two: b""})


def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path: Path) -> None:
    outside, link = tmp_path / "outside.json", tmp_path / "run.json"
    outside.write_text("theirs")
    link.symlink_to(outside)
    write_text(link, "ours")
    assert outside.read_text() == "theirs" and link.read_text() == "ours" and not link.is_symlink()


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "save" / "it5-0.png"
    kept.parent.mkdir()
    kept.touch()
    left = kept.parent / ".it5-0.tmp.4711.png"
    left.touch()
    remove_leftovers(tmp_path)
    assert kept.exists() and not left.exists() and temporary(kept).name.startswith(".it5-0.tmp.")


def test_bytes_that_are_no_text_are_written_as_what_they_are(tmp_path):
    write_text(tmp_path / "x", "caf\udce9 \ud800")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "caf\\udce9 \\ud800"


def test_what_is_read_is_a_file_and_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"a\r\nb\xff\n")
    assert (
        read_bytes(tmp_path / "text") == b"a\r\nb\xff\n" and read_text(tmp_path / "text", "replace") == "a\nb\ufffd\n"
    )
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "text")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for name in ("pipe", "to_pipe", "loop", "nowhere", "none", "."):
        with pytest.raises(OSError, match=r"pipe|levels|No such|directory"):
            read_bytes(tmp_path / name)
    for name in ("pipe", "to_pipe", "loop", "nowhere", "text"):
        with own_file(tmp_path / name).open("a") as handle:
            handle.write("x")
    assert not (tmp_path / "none").exists() and (tmp_path / "text").read_bytes().endswith(b"\nx")
