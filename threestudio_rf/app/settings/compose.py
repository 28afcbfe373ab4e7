"""From overrides and files to a checked `Config`: Hydra composes, stored settings are read, errors become one line."""

from __future__ import annotations

import dataclasses
import pickle
import re
from functools import cache
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.config import VERSION, Config, leaves, value_of
from threestudio_rf.app.settings.files import layered
from threestudio_rf.app.settings.grammar import CONFIGS, choices, groups

SETTING_GROUPS = ("prior", "scene", "loss")
RUN_KEYS: tuple[str, ...] = (
    "version",
    "task",
    "mode",
    "resume",
    "weights",
    "exp_root_dir",
    "log_level",
    "wandb",
    "viewer",
    "viewer_port",
    "device",
    "tag",
)
RUN_KEYS += (
    "name",
    "prompt_file",
    "preset",
    "experiment",
    "allow_empty_prompt",
    "refine",
    "refine_with",
    "refine_steps",
)
RUN_GROUPS = ("export.", "sample.", "edit.", "evaluate.", "train_tiny.", "grid.", "checkpoint.")
FREE: tuple[str, ...] = ("scene.encoding.backend", "scene.encoding.half", "scene.field.bf16", "scene.background.random")
FREE += ("scene.renderer.samples_per_ray", "scene.renderer.ray_chunk", "scene.renderer.marching")

FREE += tuple(f"scene.encoding.{name}" for name in ("start_level", "start_step", "update_steps"))
FREE += ("scene.shading.",)


def register() -> None:
    """Tell Hydra the schema, unless it knows it already."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    if "schema.yaml" not in store.repo:
        store.store(name="schema", node=Config)


@cache
def _blank() -> bytes:
    return pickle.dumps(OmegaConf.structured(Config))


def blank() -> DictConfig:
    """The schema with its defaults, to merge settings into; unpickled, which takes a tenth of the time of making it."""
    made: DictConfig = pickle.loads(_blank())
    return made


def compose(overrides: list[str]) -> DictConfig:
    """The settings of `configs/` under `overrides`. Raises UserError in one line for what Hydra refuses."""
    if not CONFIGS.is_dir():
        raise UserError(f"no folder of settings at {CONFIGS}; reinstall the package")
    _check_choices(overrides)
    made = _directly(overrides)
    return by_hydra(overrides) if made is None else made


def _directly(overrides: list[str]) -> DictConfig | None:
    """Composes as `by_hydra` does, in a third of its time. None where an override is more than `key=value` of a setting
    or a group, or cannot be used."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    choice: dict[str, str] = {}
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(item.type is not OverrideType.CHANGE or item.package or item.is_sweep_override() for item in parsed):
            return None
        given = [(item.key_or_group, item.value()) for item in parsed]
        for key, value in given:
            named = key in groups() and key not in choice and isinstance(value, str)
            if not named and (key not in leaves() or key in groups()):
                return None
            choice |= {key: str(value)} if named else {}
        made = blank()
        for data in layered(choice):
            made.merge_with(data)
        for key, value in given:
            if key not in choice:
                OmegaConf.update(made, key, value)
    except (HydraException, OmegaConfBaseException, UserError):
        return None
    return made


def by_hydra(overrides: list[str]) -> DictConfig:
    """The same by Hydra, with its whole grammar and its words for what is wrong."""
    import hydra
    from hydra.errors import HydraException

    register()
    try:
        with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
            return hydra.compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_with_item(reason_of(error), overrides)) from None


def _with_item(reason: str, overrides: list[str]) -> str:
    """Adds the item that a reason is about, where it names no key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if any(item.partition("=")[0] in reason for item in overrides):
        return reason
    for item in overrides:
        try:
            OverridesParser.create().parse_override(item)
        except HydraException:
            return f"{item}: {reason}"
    return reason


def _check_choices(overrides: list[str]) -> None:
    for item in overrides:
        group, _, name = item.lstrip("+").partition("=")
        if group in groups() and name not in choices(group):
            known = choices(group)
            raise UserError(f"{group}={name}: expected one of {', '.join(known)}{suggestion(name, known)}")


def reason_of(error: BaseException) -> str:
    """The message of an error of Hydra or OmegaConf, in one line."""
    cause = error.__cause__
    lines = [str(e).strip().splitlines() for e in (error, cause) if e is not None and str(e).strip()]
    first = lines[0][0] if lines else "these settings cannot be read"
    last = lines[-1][0] if len(lines) > 1 else ""
    keys = [line.strip() for line in lines[-1] if line.strip().startswith("full_key:")] if lines else []
    told = ": ".join(part for part in (first, last, *keys) if part)
    told = re.sub(r"\b\w*NoViable\w*: ", "cannot be read, put quotes around the value: ", told)
    return re.sub(r"\b\w+(Exception|Error)\b:? ?|^Error merging override ", "", told)


def typed(settings: DictConfig | ListConfig) -> Config:
    """The dataclasses of composed settings; UserError for a missing value or a wrong type."""
    try:
        result = OmegaConf.to_object(settings)
    except OmegaConfBaseException as error:
        raise UserError(reason_of(error)) from None
    if not isinstance(result, Config):
        raise UserError(f"expected settings of {Config.__name__}, got {type(result).__name__}")
    return result


def to_text(config: Config) -> str:
    """Settings as YAML that `from_text` reads back."""
    text: str = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True, width=1000)
    return text


def escaped(node: Any) -> Any:
    """Stored text is literal: what looks like an interpolation is escaped."""
    if isinstance(node, dict):
        return {key: escaped(value) for key, value in node.items()}
    if isinstance(node, list):
        return [escaped(value) for value in node]
    if isinstance(node, str) and "${" in node:
        return re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + "\\${", node)
    return node


def _keys(node: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""libyaml's readers, ten times as fast, where PyYAML brings them."""


def from_text(text: str, source: str) -> Config:
    """Stored settings. UserError for bad YAML, another program's file, another version, an unknown key or type."""
    try:
        data, written = yaml.load(text, _SAFE), yaml.load(text, _PLAIN)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(data, dict) or "version" not in data:
        ours = ", ".join(choices("experiment"))
        raise UserError(f"{source} holds no settings of a run (no version in it); experiments: {ours}")
    version = data["version"]
    if not isinstance(version, int) or version != VERSION:
        raise UserError(f"{source} has version {version}, this program writes and reads version {VERSION}")
    unknown = [key for key in _keys(data) if key not in leaves()]
    if unknown:
        raise UserError(f"{source}: unknown key {unknown[0]}{suggestion(unknown[0], leaves())}")
    _as_written(data, written)
    try:
        made = blank()
        made.merge_with(escaped(data))
        return typed(made)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {reason_of(error)}") from None


def _as_written(data: dict[str, Any], written: dict[str, Any], prefix: str = "") -> None:
    """Give the keys that take text, in place, the scalar as it was written: `prompt: yes` is not a truth value."""
    for key, value in data.items():
        leaf = leaves().get(prefix + key)
        if isinstance(value, dict):
            _as_written(value, written[key], f"{prefix}{key}.")
        elif leaf is not None and leaf.type in (str, str | None) and isinstance(value, bool | int | float):
            data[key] = written[key]


def flat(config: Config) -> dict[str, Any]:
    """Every setting by its dotted key."""
    return {key: value_of(config, key) for key in leaves()}


def on_top(stored: Config, overrides: list[str]) -> Config:
    """Stored settings with the changes of a command line: what the overrides name, and what their groups change.

    What a stored command was about (which run it went on with, task and mode) is never inherited.
    """
    stored = dataclasses.replace(stored, resume="", weights="", refine=False)
    base = [item for item in overrides if item.startswith("experiment=")]
    new, default = flat(typed(compose(overrides))), flat(typed(compose(base)))
    named = [item.lstrip("+").partition("=")[0] for item in overrides]
    inside = tuple(f"{name}." for name in named if name in SETTING_GROUPS)
    changed = {
        key: value
        for key, value in new.items()
        if value != default[key] or key in named or (inside and key.startswith(inside))
    }
    changed |= {"task": new["task"], "mode": new["mode"]}
    merged = OmegaConf.structured(stored)
    for key, value in changed.items():
        OmegaConf.update(merged, key, escaped(value))
    return typed(merged)


def differences(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """Lines `key: old -> new` of what differs: structural (the stored scene or prior does not fit), then the rest."""
    structural: list[str] = []
    other: list[str] = []
    before, after = flat(old), flat(new)
    for key, value in after.items():
        if value == before[key] or key in RUN_KEYS or key.startswith(RUN_GROUPS):
            continue
        line = f"{key}: {before[key]} -> {value}"
        fixed = key.startswith("scene.") and not key.startswith(FREE)
        fixed = fixed or key in ("prior.name", "prior.path", "prior.revision", "prior.variant")
        (structural if fixed else other).append(line)
    return structural, other
