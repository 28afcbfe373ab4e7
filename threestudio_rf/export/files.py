"""Files that appear whole or not at all: written under a temporary name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def temporary(path: Path) -> Path:
    """A name beside `path`, with the same suffix, that no other process uses."""
    return path.with_name(f".{path.stem}.tmp.{os.getpid()}{path.suffix}")


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
            temporary(path).replace(path)
    finally:
        for path in files:
            temporary(path).unlink(missing_ok=True)
