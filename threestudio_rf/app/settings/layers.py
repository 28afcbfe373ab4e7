"""The layers of `configs/` for callers in Python: what Hydra composes of the same files, without Hydra, whose state is
global to a process. Values come as Python objects, so nothing is parsed from text."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.compose import escaped, typed
from threestudio_rf.app.settings.config import Config, leaves
from threestudio_rf.app.settings.flags import CONFIGS, choices

GLOBAL = "# @package _global_"
LOCK = threading.Lock()


@cache
def _file(name: str) -> tuple[list[Any], dict[str, Any], bool]:
    """(defaults, settings, whether they are global) of a file of `configs/`."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text) or {}
    return data.pop("defaults", []), data, text.lstrip().startswith(GLOBAL)


def _chain(group: str, name: str) -> tuple[list[str], dict[str, str]]:
    """The files of a group's choice, those it builds on first, and what it chooses of other groups; outer ones win."""
    files: list[str] = []
    chosen: dict[str, str] = {}
    for item in _file(f"{group}/{name}")[0]:
        if isinstance(item, str) and item != "_self_":
            where, _, file = item.rpartition("/")
            below, inner = _chain(where.strip("/") or group, file)
            files += below
            chosen = inner | chosen
        elif isinstance(item, dict):
            chosen |= {key.removeprefix("override /"): value for key, value in item.items()}
    return [*files, f"{group}/{name}"], chosen


def choose(choice: Mapping[str, str]) -> dict[str, str]:
    """The choice of every group in the order of config.yaml: the caller's, then those of files, then the default ones.
    Of two files the one that config.yaml names last decides. UserError for a group or choice that is not there."""
    listed = [item for item in _file("config")[0] if isinstance(item, dict)]
    groups = {key: value for item in listed for key, value in item.items() if not key.startswith("override ")}
    for group, name in choice.items():
        if group not in groups:
            raise UserError(f"{group}={name}: expected one of the groups {', '.join(groups)}")
        if name not in choices(group):
            raise UserError(
                f"{group}={name}: expected one of {', '.join(choices(group))}{suggestion(name, choices(group))}"
            )
    decided = dict(choice)
    for group, default in reversed(groups.items()):
        for other, name in _chain(group, decided.get(group, default))[1].items():
            decided.setdefault(other, name)
    return {group: decided.get(group, default) for group, default in groups.items()}


def settings(choice: Mapping[str, str] | None = None, changes: Mapping[str, Any] | None = None) -> Config:
    """The settings of the chosen files (`{"experiment": "tiny", "prior": "tiny_sd"}`) under changes by dotted key
    (`{"trainer.steps": 100}`). UserError for a group, choice, key or type that is not there."""
    with LOCK:
        made: Any = OmegaConf.structured(Config)
        for group, name in choose(choice or {}).items():
            for file in _chain(group, name)[0]:
                _, data, everywhere = _file(file)
                made = OmegaConf.merge(made, data if everywhere else {group: data})
        own = {key: value for key, value in _file("config")[1].items() if key != "hydra"}
        made = OmegaConf.merge(made, own)
        return typed(_changed(made, changes or {}))


def on_preset(config: Config, name: str) -> Config:
    """Settings with those of a preset's own file on top."""
    return typed(OmegaConf.merge(OmegaConf.structured(config), _file(f"preset/{name}")[1]))  # type: ignore[arg-type]


def _changed(made: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    for key, value in changes.items():
        if key not in leaves():
            raise UserError(f"unknown setting {key}{suggestion(key, leaves())}")
        try:
            OmegaConf.update(made, key, escaped(value))
        except OmegaConfBaseException as error:
            raise UserError(f"{key}={value!r}: {str(error).splitlines()[0]}") from None
    return made
