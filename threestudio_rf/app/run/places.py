"""Paths: `${oc.env:NAME}` is resolved in settings that are paths, and in no text; a run's folder holds files where
files are expected and folders where folders are."""

from __future__ import annotations

import re
from pathlib import Path

from threestudio_rf.app.errors import PATHS, UserError, user_path
from threestudio_rf.app.settings.config import Config, value_of

PLACES = re.compile(r"ckpts|configs|csv_logs|save(/(it\d+-(test|export)|progress))?")
"""The folders in a run's folder."""
WRITTEN = re.compile(r"\.(ckpt|csv|gif|glb|html|json|mp4|mtl|obj|ply|png|stl|txt|yaml)")
"""Endings of the files in it."""


def resolve_paths(config: Config) -> None:
    """Resolve the variables of the environment in all paths, in place. UserError naming the key of a path that cannot
    be one."""
    for key in PATHS:
        value = value_of(config, key)
        if value and "${" in value:
            group, _, name = key.rpartition(".")
            setattr(value_of(config, group) if group else config, name, str(user_path(value, key)))


def check_places(folder: Path) -> None:
    """Raise UserError for a file in the place of one of a run's folders, and for a folder in the place of a file."""
    for path in (path for pattern in ("*", "*/*", "save/*/*") for path in folder.glob(pattern)):
        if path.is_dir() and WRITTEN.fullmatch(path.suffix):
            raise UserError(f"{path} is a folder, expected a file; move it elsewhere")
        if PLACES.fullmatch(path.relative_to(folder).as_posix()) and not path.is_dir():
            raise UserError(f"{path} is no folder, expected one; move it elsewhere")
