"""The layers of `configs/` for callers in Python: what Hydra composes of the same files, without Hydra, whose state is
global to a process. Values come as Python objects, so nothing is parsed from text."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.compose import blank, escaped, typed
from threestudio_rf.app.settings.config import Config, leaves
from threestudio_rf.app.settings.files import chain, file_of, layered

LOCK = threading.Lock()


def settings(choice: Mapping[str, str] | None = None, changes: Mapping[str, Any] | None = None) -> Config:
    """The settings of the chosen files (`{"experiment": "tiny", "prior": "tiny_sd"}`) under changes by dotted key
    (`{"trainer.steps": 100}`). UserError for a group, choice, key or type that is not there."""
    with LOCK:
        made = blank()
        for data in layered(choice or {}):
            made.merge_with(data)
        return typed(_changed(made, changes or {}))


def on_preset(config: Config, name: str) -> Config:
    """Settings with those of a preset's file on top, and of those it builds on."""
    files = [file_of(file)[1] for file in chain("preset", name)[0]]
    return typed(OmegaConf.merge(OmegaConf.structured(config), *files))


def _changed(made: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    for key, value in changes.items():
        if key not in leaves():
            raise UserError(f"unknown setting {key}{suggestion(key, leaves())}")
        try:
            OmegaConf.update(made, key, escaped(value))
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value!r}: {str(error).splitlines()[0]}") from None
    return made
