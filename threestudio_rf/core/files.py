"""Files that appear whole or not at all: written under a temporary name, flushed to the disk, then renamed. What is
read is a file, or an OSError: nothing waits for a pipe."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path


def temporary(path: Path) -> Path:
    """A name beside `path`, with the same suffix, that no other process uses."""
    return path.with_name(f".{path.stem}.tmp.{os.getpid()}{path.suffix}")


def read_bytes(path: Path) -> bytes:
    """What a file holds. OSError for what is none: a folder, a link to nowhere, a pipe or a device, which would make a
    reader wait."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.ENXIO, "not a file, but a pipe, socket or device", str(path))
    return path.read_bytes()


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a file in UTF-8, its line ends as \\n. OSError as `read_bytes`, ValueError for other bytes."""
    return read_bytes(path).decode("utf-8", errors).replace("\r\n", "\n").replace("\r", "\n")


def write_text(path: Path, text: str) -> None:
    """One file of text in UTF-8, bytes that are none as `\\udce9`; OSError as `write_files`."""
    write_files({path: text.encode("utf-8", "backslashreplace")})


def own_file(path: Path) -> Path:
    """`path` to append to or to write anew: a link is taken away, so that nothing is written elsewhere, and a pipe or
    a socket, which would make a writer wait."""
    if path.is_symlink() or not (path.is_file() or path.is_dir() or not path.exists()):
        path.unlink()
    return path


def remove_leftovers(folder: Path) -> None:
    """Temporary files below `folder` that killed processes have left. Nobody else may write there."""
    for path in folder.rglob(".*.tmp.*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write all of `files` or none; folders are made. No file is replaced before every byte is on the disk.

    Raises OSError (disk full, not writable) after removing the temporary files, ValueError for an empty file.
    """
    for path, data in files.items():
        if not data:
            raise ValueError(f"refusing to write the empty file {path}")
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary(path).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for path in files:
            os.replace(temporary(path), path)
        for folder in {path.parent for path in files}:
            sync(folder)
    finally:
        for path in files:
            temporary(path).unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, where the system has a way to."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some file systems refuse this for folders
        pass
    finally:
        os.close(handle)
