"""Settings that name files and folders: `${oc.env:NAME}` is resolved in them, and in no text."""

from __future__ import annotations

from threestudio_rf.app.errors import PATHS, user_path
from threestudio_rf.app.settings.config import Config, value_of


def resolve_paths(config: Config) -> None:
    """Resolve the variables of the environment in all paths, in place. UserError naming the key of a path that cannot
    be one."""
    for key in PATHS:
        value = value_of(config, key)
        if value and "${" in value:
            group, _, name = key.rpartition(".")
            setattr(value_of(config, group) if group else config, name, str(user_path(value, key)))
