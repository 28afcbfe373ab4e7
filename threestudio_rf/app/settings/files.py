"""The files of `configs/` and their order, as Hydra composes them, without Hydra and OmegaConf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.config import leaves
from threestudio_rf.app.settings.grammar import CONFIGS, choices

GLOBAL = "# @package _global_"


@cache
def file_of(name: str) -> tuple[list[Any], dict[str, Any], bool]:
    """(defaults, settings, whether they are global) of a file of `configs/`."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text) or {}
    return data.pop("defaults", []), data, text.lstrip().startswith(GLOBAL)


def chain(group: str, name: str) -> tuple[list[str], dict[str, str]]:
    """The files of a group's choice, those it builds on first, and what it chooses of other groups; outer ones win."""
    files: list[str] = []
    chosen: dict[str, str] = {}
    for item in file_of(f"{group}/{name}")[0]:
        if isinstance(item, str) and item != "_self_":
            where, _, file = item.rpartition("/")
            below, inner = chain(where.strip("/") or group, file)
            files += below
            chosen = inner | chosen
        elif isinstance(item, dict):
            chosen |= {key.removeprefix("override /"): value for key, value in item.items()}
    return [*files, f"{group}/{name}"], chosen


def choose(choice: Mapping[str, str]) -> dict[str, str]:
    """The choice of every group in the order of config.yaml: the caller's, then those of files, then the default ones.
    Of two files the one that config.yaml names last decides. UserError for a group or choice that is not there."""
    listed = [item for item in file_of("config")[0] if isinstance(item, dict)]
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
        for other, name in chain(group, decided.get(group, default))[1].items():
            decided.setdefault(other, name)
    return {group: decided.get(group, default) for group, default in groups.items()}


def layered(choice: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The settings of the chosen files, nested as in `Config`, those below first."""
    for group, name in choose(choice).items():
        for file in chain(group, name)[0]:
            _, data, everywhere = file_of(file)
            yield data if everywhere else {group: data}
    yield {key: value for key, value in file_of("config")[1].items() if key != "hydra"}


def defaults() -> dict[str, Any]:
    """Every setting by its dotted key, as a command without any choice uses it."""
    found = {key: leaf.default for key, leaf in leaves().items()}
    for data in layered({}):
        found |= _flat(data, "")
    return found


def _flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found
