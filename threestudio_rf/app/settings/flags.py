"""The command line before Hydra sees it: threestudio's flags and keys become ours, bare text is quoted, keys checked.

Hydra's grammar reads `prompt=a scarf, red` as a sweep and an apostrophe as an error; threestudio's parser took both
literally, so the values of text keys are quoted here. The module imports neither torch nor Hydra.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings import given
from threestudio_rf.app.settings.config import leaves
from threestudio_rf.app.settings.conversions import Meaning
from threestudio_rf.app.settings.grammar import CONFIGS as CONFIGS
from threestudio_rf.app.settings.grammar import PACKAGE as PACKAGE
from threestudio_rf.app.settings.grammar import QUOTED, fitted, groups, spelled, text_keys
from threestudio_rf.app.settings.grammar import choices as choices
from threestudio_rf.app.settings.grammar import quote as quote
from threestudio_rf.app.settings.peers import CONVERTED, RENAMED, known

IMAGE_EXPERIMENTS = {"sd3": "2d_rfds_sd3", "sd35": "2d_rfds_sd3"}
IMAGE_EXPERIMENTS |= dict.fromkeys(("sd", "sd21", "instaflow"), "2d_rfds")
FLAGS = ("--config", "--gpu", "--train", "--validate", "--test", "--export", "--verbose", "--typecheck", "--gradio")
DEVICES = re.compile(r"(-1|(\d+|(GPU|MIG)-[\w/-]+)(,(\d+|(GPU|MIG)-[\w/-]+))*)")
OWN_FLAGS = ("--help", "-h", "--version", "--cfg", "--multirun", "-m")


@dataclass
class Launch:
    """A parsed command line, in our words."""

    argv: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config: str = ""
    gpu: str = ""
    multirun: bool = False
    show: str = ""
    notes: list[str] = field(default_factory=list)
    named: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """What the command line itself names, in ours or a peer's spelling: `key=value` as typed, and our keys it sets."""


class Part(NamedTuple):
    """One `key=value` of a command line: as typed, its sign (+, ~), the key by our name where it has one, the value."""

    typed: str
    sign: str
    key: str
    value: str


def _check_key(key: str) -> None:
    ours = leaves()
    plain = key.split("@", 1)[0]
    if plain == "version":
        raise UserError("version is that of the settings' format, which this program writes; it is not to choose")
    if plain in ours or plain in groups() or plain.startswith(("hydra.", "hydra/")):
        return
    if any(name.startswith(plain + ".") for name in ours):
        raise UserError(f"{key} is a group of settings; set one of them, for example {_first_below(plain)}=...")
    raise UserError(f"unknown key {key}{suggestion(plain, [*ours, *groups(), *RENAMED, *CONVERTED])}")


def _first_below(key: str) -> str:
    return next(name for name in leaves() if name.startswith(key + "."))


SHORT = {"task=sample": "sample", "task=edit": "edit", "task=invert": "edit"}
"""Tasks whose own settings go without their group: with task=sample, `steps=20` is `sample.steps=20`."""


def _short(items: list[str]) -> dict[str, str]:
    """Those settings of the task among `items`, short and in full."""
    group = next((group for task, group in SHORT.items() if task in items), None)
    names = [key.partition(".")[2] for key in leaves() if key.startswith(f"{group}.")]
    return {name: f"{group}.{name}" for name in names if name not in leaves()}


def _check_words(items: list[str]) -> None:
    """UserError for words that stand alone, as those of a prompt without quotes: with the quotes that are missing."""
    for place, item in enumerate(items):
        if "=" in item or item.startswith(("+", "~")):
            continue
        key, equals, value = items[place - 1].partition("=") if place else ("prompt", "", "")
        words = items[place:]
        if words[1:] and words[1].startswith("="):
            given = words[1][1:] or " ".join(words[2:3])
            raise UserError(f"{item} {words[1]}: expected no spaces around =, as {item}={shlex.quote(given)}")
        words = words[: next((i for i, word in enumerate(words) if "=" in word), len(words))]
        if not equals or RENAMED.get(key, key) not in text_keys():
            key, value = "prompt", ""
        text = " ".join([value, *words]).strip().strip("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb")
        raise UserError(f'{item!r} is neither a flag nor key=value; a text is given in quotes: {key}="{text}"')


def _part(item: str, short: dict[str, str]) -> Part:
    """A `key=value`, where the key is ours or a peer's."""
    key, _, value = item.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key[len(sign) :]
    return Part(item, sign, short.get(key) or RENAMED.get(key, key), value)


def _override(key: str, value: str, *, multirun: bool) -> str:
    """One setting of ours as Hydra reads it."""
    if key in groups():
        name = re.sub(r".*/|\.yaml$", "", value) if value.endswith(".yaml") else value
        return f"{key}={name.replace('-', '_')}"
    text = text_keys()
    if key in text:
        swept = multirun and value[:1] in "'\"" and value[-1:] == value[:1]
        if not (swept or QUOTED.fullmatch(value) or (value == "null" and text[key])):
            value = quote(value)
    return f"{key}={value if multirun and ',' in value else fitted(key, value)}"


def _value(text: str) -> Any:
    """The value of a peer's key as YAML reads it."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _translated(part: Part, meaning: Meaning, told: given.Told, multirun: bool) -> dict[str, str]:
    """The overrides of one part by key. In a sweep the values between commas are translated one by one."""
    _, sign, key, value = part
    if not known(key):
        _check_key(key)
        if sign.startswith("~"):
            raise UserError(f"{sign}{key}: settings can be changed, not removed")
        return {key: _override(key, value, multirun=multirun)}
    several = re.split(r",(?![^\[]*\])", value) if multirun else [value]
    each = [given.changes(key, _value(text), meaning, told) or {} for text in several]
    return {name: f"{name}={','.join(fitted(name, spelled(one[name])) for one in each)}" for name in each[0]}


MODES = ("--train", "--validate", "--test", "--export")


def _flag(flag: str, value: str, launch: Launch) -> None:
    if flag == "--config":
        if not value:
            raise UserError("--config needs a file")
        if launch.config:
            raise UserError(f"--config {launch.config}, --config {value}: expected one file")
        launch.config = value
    elif flag == "--gpu":
        if not DEVICES.fullmatch(value):
            raise UserError(f"--gpu {value}: expected numbers of GPUs, as 0 or 0,1; a CPU is device=cpu")
        launch.gpu = value
    elif flag in MODES:
        other = [item for item in launch.overrides if item.startswith("mode=") and item != f"mode={flag[2:]}"]
        if other:
            raise UserError(f"{flag} and --{other[0].partition('=')[2]}: expected one of {', '.join(MODES)}")
        launch.overrides.append(f"mode={flag[2:]}")
    elif flag == "--verbose":
        launch.overrides.append("log_level=debug")
    elif flag in ("--typecheck", "--gradio"):
        launch.notes.append(f"{flag} has no effect here")
    elif flag in ("-m", "--multirun"):
        launch.multirun = True
    elif flag in ("-h", "--help"):
        launch.show = "help"
    elif flag in ("--version", "--cfg"):
        launch.show = flag[2:]


def translate(argv: list[str]) -> Launch:
    """Parse the arguments behind `launch.py`. Raises UserError for an unknown flag or key."""
    launch, items, position = Launch(argv=argv), [], 0
    while position < len(argv):
        item = argv[position]
        position += 1
        if not item.startswith("-"):
            items.append(item)
            continue
        flag, equals, value = item.partition("=")
        if flag not in FLAGS + OWN_FLAGS:
            raise UserError(f"unknown flag {flag}{suggestion(flag, FLAGS + OWN_FLAGS)}")
        if flag in ("--config", "--gpu") and not equals:
            if position == len(argv):
                raise UserError(f"{flag} needs a value")
            value, position = argv[position], position + 1
        if flag == "--cfg" and argv[position : position + 1] in (["job"], ["all"]):
            position += 1
        _flag(flag, value, launch)
    _settings(items, launch)
    launch.overrides += _implied(launch.overrides)
    return launch


def _strict(items: list[str], launch: Launch) -> bool:
    """Whether what has no counterpart is refused; the item that says so is taken out of `items`."""
    said = [item for item in items if item.lstrip("+").startswith("strict=")]
    wrong = [item for item in said if item.partition("=")[2] not in ("true", "false")]
    if wrong:
        raise UserError(f"{wrong[0]}: expected strict=true or strict=false")
    items[:] = [item for item in items if item not in said]
    return not said or said[-1].endswith("true")


def _settings(items: list[str], launch: Launch) -> None:
    """The overrides of the file and, behind them, of the command line, and what is to be said of both."""
    strict = _strict(items, launch)
    file = given.read(launch.config) if launch.config else given.File()
    short = _short([*(f"{key}={value}" for key, value in file.values.items() if key == "task"), *items])
    _check_words(items)
    parts = [_part(item, short) for item in items]
    typed = {part.key: part.value for part in parts}
    if typed.get("prompt") and "prompt_file" in typed:
        raise UserError("prompt= and prompt_file= both say what to make: give only one of them")
    experiment = typed.get("experiment", file.base).replace("-", "_")
    meaning = given.meaning_of(file, {key: _value(value) for key, value in typed.items()}, experiment)
    told, said = given.Told(), given.Told()
    below = given.overrides_of(file, meaning, told) if file.values else {}
    launch.notes += told.settle(file.source, strict=strict)
    if file.whole and not experiment:
        raise UserError(f"{file.source}: {given.TYPE}={file.values[given.TYPE]} is not here; name an experiment=")
    chosen = tuple(f"{group}." for group in given.LAYERS if group in typed)
    hidden = (*chosen, *(("prompt_file",) if "prompt" in typed else ()))
    kept = {key: value for key, value in below.items() if key not in typed and not key.startswith(hidden or ("\n",))}
    first = [f"experiment={file.base}"] if file.base and "experiment" not in typed else []
    own = [_translated(part, meaning, said, launch.multirun) for part in parts]
    launch.notes += said.settle("command line", strict=strict)
    launch.named = [(part.typed, tuple(found)) for part, found in zip(parts, own, strict=True)]
    lines = [line for found in own for line in found.values()]
    launch.overrides = [*first, *(f"{key}={value}" for key, value in kept.items()), *launch.overrides, *lines]


def _implied(overrides: list[str]) -> list[str]:
    """The experiment that scene=image means where none is named, by the prior."""
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    if chosen.get("scene") != "image" or "experiment" in chosen:
        return []
    return [f"experiment={IMAGE_EXPERIMENTS.get(chosen.get('prior', ''), 'tiny_image')}"]
