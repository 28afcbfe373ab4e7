"""Where the settings lie, and how a value is spelled for Hydra. The module imports neither torch nor Hydra."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from threestudio_rf.app.settings.config import leaves

PACKAGE = Path(__file__).resolve().parents[2]
CONFIGS = next((at for at in (PACKAGE / "configs", PACKAGE.parent / "configs") if at.is_dir()), PACKAGE / "configs")
"""The settings: inside an installed package, beside that of a checkout."""
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
WHOLE = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def groups() -> list[str]:
    """The config groups."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


@cache
def text_keys() -> dict[str, bool]:
    """The keys that take free text, and whether they take null."""
    found = {}
    for key, leaf in leaves().items():
        if leaf.type in (str, str | None) and "choices" not in leaf.rule and key not in groups():
            found[key] = leaf.type is not str
    return found


def quote(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar that OmegaConf reads back unchanged."""
    text = re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + "\\${", text)
    text = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", text)
    text = re.sub(r"(\\+)$", lambda m: m.group(1) * 2, text)
    return f"'{text}'"


def spelled(value: Any) -> str:
    """A value of YAML in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(spelled(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{quote(str(key))}:{spelled(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, int | float) else quote(str(value))


def fitted(key: str, text: str) -> str:
    """The text of a value as its setting takes it: a whole number that is written as 1e4 or 64.0, and one value, or
    several with commas, where a list is asked for."""
    leaf = leaves().get(key)
    if leaf is None or not text or text == "null" or text[0] in "[$":
        return text
    if get_origin(leaf.type) is list:
        free = get_args(leaf.type)[0] is str and "choices" not in leaf.rule
        return f"[{quote(text) if free and not QUOTED.fullmatch(text) else text}]"
    if int in (leaf.type, *get_args(leaf.type)) and WHOLE.fullmatch(text) and float(text).is_integer():
        return str(int(float(text)))
    return text
