"""A config file of ours, of threestudio or of the reference, as overrides of ours; the keys of a command line likewise.

A file counts as a command line that comes before the typed one. What has no counterpart is gathered, so that one
message tells all of it. The module imports neither torch nor Hydra.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from threestudio_rf.app.errors import UserError, suggestion, user_path, user_text
from threestudio_rf.app.settings.config import VERSION, leaves
from threestudio_rf.app.settings.conversions import GUIDANCE, Changes, Meaning, Unfit, guidance_of
from threestudio_rf.app.settings.grammar import CONFIGS, choices, fitted, groups, spelled, text_keys
from threestudio_rf.app.settings.peers import CONVERTED, DEFAULTS, RENAMED
from threestudio_rf.app.settings.unneeded import REPLACED, fixed, replaced

TYPE, PERP_NEG, SJC = "system.guidance_type", "system.prompt_processor.use_perp_neg", "system.guidance.use_sjc"
OTHERS = dict.fromkeys(("magic3d_coarse_sd", "magic3d_refine_sd", "sjc"), "stable-diffusion-guidance")
OTHERS |= {"rfds_rev_sd3_low_memory": "RFDS-Rev-sd3", "2d_rfds": "RFDS", "2d_rfds_rev": "RFDS-Rev"}
OTHERS |= {"2d_rfds_sd3": "RFDS-sd3", "2d_rfds_rev_sd3": "RFDS-Rev-sd3"}
OF_PRESET = {row.preset: name for name, row in GUIDANCE.items()} | OTHERS
"""The guidance_type of each of our presets that is named after a file of theirs."""
WITH_PERP_NEG = ("sdi",)
NOT_INHERITED = ("version", "resume", "weights", "task", "mode", "experiment")
LAYERS = ("prior", "scene", "loss")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
MOST_KEYS = 2000
NEAREST = {
    "latentnerf": "dreamfusion-sd",
    "magic3d_coarse_if": "magic3d-coarse-sd",
    "dreamfusion_if": "dreamfusion-sd",
    "dreamfusion_sd_eff": "dreamfusion-sd",
    "fantasia3d": "prolificdreamer",
    "hifa": "dreamfusion-sd",
    "latentnerf_refine": "dreamfusion-sd",
    "fantasia3d_texture": "prolificdreamer",
    "prolificdreamer_geometry": "prolificdreamer",
    "prolificdreamer_texture": "prolificdreamer",
    "textmesh_if": "dreamfusion-sd",
    "sketchshape": "dreamfusion-sd",
}
"""Files of threestudio that are no preset here, and the one that is nearest."""


@dataclass
class File:
    """A config file: its dotted keys, the experiment it lies on ("": none), whether it is the record of a run."""

    source: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    record: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a whole file of theirs, which means their defaults where it says nothing."""
        return TYPE in self.values


@dataclass
class Told:
    """Notes on keys that are no settings here: `key=value` and why."""

    unneeded: list[str] = field(default_factory=list)
    otherwise: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def settle(self, source: str, *, strict: bool) -> list[str]:
        """Lines about what was left out; UserError for what has no counterpart, unless not `strict`."""
        lost = [f"no counterpart here: {', '.join(self.missing)}"] if self.missing else []
        lost += [f"unknown: {', '.join(self.unknown)}"] if self.unknown else []
        if lost and strict:
            raise UserError(f"{source}: {'; '.join(lost)}; strict=false leaves them out")
        lines = [f"{source}: left out, {text}" for text in lost]
        lines += [f"{source}: {why} ({', '.join(keys)})" for why, keys in self.otherwise.items()]
        return [*lines, *([f"{source}: nothing to choose here: {', '.join(self.unneeded)}"] if self.unneeded else [])]


def preset_of(path: str) -> str:
    """The experiment that a path names without a file being there, as threestudio's scripts do from its own folder:
    `configs/<name>.yaml`, or the bare name. UserError for any other path, naming what is nearest."""
    name = Path(path).stem.replace("-", "_")
    if name in choices("experiment") and str(Path(path).parent) in (".", "configs"):
        return name
    near = f"; nearest is --config configs/{NEAREST[name]}.yaml" if name in NEAREST else ""
    near = near or suggestion(name, choices("experiment"))
    raise UserError(f"--config {path}: no such file{near}; experiments: {', '.join(choices('experiment'))}")


def read(path: str) -> File:
    """The file; UserError for one that cannot be read, is not YAML, or is the record of another version."""
    place = user_path(path, "--config")
    if place.is_dir():
        stored = place / "configs" / "parsed.yaml"
        hint = f"; the settings of this run are in {stored}" if stored.is_file() else ""
        raise UserError(f"--config {path}: a folder, expected a file{hint}")
    if not place.is_file():
        return File(path, base=preset_of(path))
    if place.resolve().parent.parent == CONFIGS.resolve():
        group, name = place.resolve().parent.name, place.stem
        return File(path, {} if group == "experiment" else {group: name}, base=name if group == "experiment" else "")
    try:
        text = user_text(place, "--config")
        data, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
        again = twice(yaml.compose(text, yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date without such a day
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if again:
        raise UserError(f"--config {path}: {again}, expected each key once")
    if not isinstance(data, dict) or not data:
        raise UserError(f"--config {path}: expected keys with values, got {'nothing' if not data else 'no keys'}")
    if set(data) == {"overrides"}:
        raise UserError(f"--config {path}: the overrides of a run; its settings are in parsed.yaml beside it")
    layers, values = _defaults(path, data), {}
    for key, value, text in _flat(data, written):
        literal = text is not None and value is not None and RENAMED.get(key, key) in text_keys()
        values[key] = text if literal else value
        if len(values) > MOST_KEYS:
            raise UserError(f"--config {path}: more than {MOST_KEYS} keys")
    record = "version" in values
    if record and values["version"] != VERSION:
        raise UserError(f"{path} has version {values['version']}, this program writes and reads version {VERSION}")
    found = File(path, layers | (values if record else _resolved(values)), record=record)
    found.base = _base(found)
    return found


def twice(root: yaml.Node | None) -> str:
    """The first key of a YAML document that stands in one table twice, and its line; "" where none does."""
    rest, known = [root] if root is not None else [], set[int]()
    while rest:
        node = rest.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            rest += node.value
            continue
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in names:
                    return f"{key.value} again in line {key.start_mark.line + 1}"
                names.add(key.value)
            rest.append(value)
    return ""


def _defaults(path: str, data: dict[str, Any]) -> dict[str, Any]:
    """What the Hydra list `defaults` of a copy of our own experiment says: `override /prior: sd3`, or another one."""
    found: dict[str, Any] = {}
    for item in data.pop("defaults", []) or []:
        if isinstance(item, dict):
            found |= {str(key).removeprefix("override ").lstrip("/"): value for key, value in item.items()}
        elif item != "_self_":
            found["experiment"] = item
    unknown = [key for key in found if key not in groups()]
    if unknown:
        raise UserError(
            f"--config {path}: defaults: expected one of the groups {', '.join(groups())}, got {unknown[0]}"
        )
    return found


def _flat(node: dict[Any, Any], written: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value, the same as it was written) of every leaf."""
    for key, value in node.items():
        text = written.get(str(key)) if isinstance(written, dict) else None
        if isinstance(value, dict) and value and f"{prefix}{key}" not in leaves():
            yield from _flat(value, text, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _numbers(value), text


def _numbers(value: Any) -> Any:
    """1e-4 is a number, which YAML 1.1 takes for text."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    exponent = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE)
    return float(value) if exponent else value


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """Values with `${other.key}` replaced; left out are what is to be given (`???`) and a tag made from the prompt."""
    found = {}
    for key, value in values.items():
        for _ in range(8):
            match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if match is None or match.group(1) not in values:
                break
            value = values[match.group(1)]
        made = key == "tag" and isinstance(value, str) and "${" in value
        if value != "???" and not made:
            found[key] = value
    return found


def _base(file: File) -> str:
    """The experiment that a file lies on: the one of its base name, or of the name in it, if that has the guidance it
    asks for; else that of its guidance."""
    own = file.values.get("experiment")
    if own is not None and not file.record and own not in choices("experiment"):
        raise UserError(f"--config {file.source}: experiment={own}: expected one of {', '.join(choices('experiment'))}")
    named = [own, Path(file.source).stem, file.values.get("name")]
    ours = [name for name in (str(each).replace("-", "_") for each in named) if name in choices("experiment")]
    if file.record or not file.whole:
        return ours[0] if ours else ""
    asked = file.values[TYPE]
    fitting = [name for name in ours if OF_PRESET.get(name) == asked]
    row = guidance_of(asked, file.values)
    return fitting[0] if fitting else "" if row is None else "sjc" if file.values.get(SJC) is True else row.preset


def meaning_of(file: File, items: Mapping[str, Any], experiment: str) -> Meaning:
    """What the values of a file and of a command line depend on; `experiment` is the one that is run."""
    given = {**(DEFAULTS if file.whole else {}), **file.values, **items}
    asked = given.get(TYPE, OF_PRESET.get(experiment, ""))
    on = given.get(PERP_NEG, given.get("loss.perp_neg", experiment in WITH_PERP_NEG))
    return Meaning(guidance_of(asked, given), on is True or on == "true", given)


def changes(key: str, value: Any, meaning: Meaning, told: Told) -> Changes | None:
    """Our settings for a peer's key; nothing where there is none to make, which is noted in `told`; None for a key that
    is no peer's."""
    row, hidden = fixed(key), isinstance(value, str) and "${" in value and RENAMED.get(key) not in text_keys()
    if key in RENAMED and not hidden:
        return {RENAMED[key]: value}
    if key not in RENAMED and key not in CONVERTED and row is None:
        return None
    shown = f"{key}={value}" if len(str(value)) < 40 else key
    try:
        if hidden:
            raise Unfit("its value cannot be worked out")
        if key in CONVERTED:
            return CONVERTED[key].convert(value, meaning)
    except Unfit as why:
        told.missing.append(f"{shown} (nearest: {why})")
        return {}
    if row is None or row.asks_nothing(value):
        told.unneeded.append(key)
    elif row.otherwise:
        told.otherwise.setdefault(row.otherwise, []).append(shown)
    else:
        told.missing.append(f"{shown} (nearest: {row.nearest})" if row.nearest else shown)
    return {}


def _group(key: str) -> bool:
    """Whether a key holds others, ours or a peer's: as `trainer:` with nothing below it."""
    return any(name.startswith(f"{key}.") for name in (*leaves(), *RENAMED, *CONVERTED))


def overrides_of(file: File, meaning: Meaning, told: Told) -> dict[str, str]:
    """The overrides that a file amounts to, by key and in order."""
    values = {**(DEFAULTS if file.whole and file.base not in REPLACED else {}), **file.values}
    order = [*(key for key in values if key not in CONVERTED), *(key for key in CONVERTED if key in values)]
    found: dict[str, str] = {}
    for key in order:
        value = values[key]
        if key == "experiment" or (file.record and key in NOT_INHERITED):
            continue
        if key in groups() and value is not None:
            found |= {} if file.record and value not in choices(key) else {key: str(value)}
        elif key in leaves():
            found[key] = fitted(key, spelled(value))
        elif value is None and _group(key):
            continue
        elif why := replaced(file.base, key, value):
            told.otherwise.setdefault(why, []).append(key)
        else:
            ours = changes(key, value, meaning, told)
            if ours is None:
                told.unknown.append(f"{key}{suggestion(key, [*leaves(), *RENAMED, *CONVERTED])}".replace(";", ","))
            else:
                found |= {name: fitted(name, spelled(each)) for name, each in ours.items()}
    return found
