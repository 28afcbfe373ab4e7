"""The text of `--help`: made from the schema and the config folder, without torch and without Hydra."""

from __future__ import annotations

from typing import Any

from threestudio_rf.app.settings.config import Leaf, leaves
from threestudio_rf.app.settings.files import defaults
from threestudio_rf.app.settings.grammar import choices, groups

EXAMPLES = (
    ('python launch.py prompt="a red mushroom"', "text to 3D with the embedded prior, on any machine"),
    ('python launch.py task=sample prompt="a blue cube" sample.n=8', "pictures straight from the prior"),
    ('python launch.py experiment=rfds_sd3 prompt="a DSLR photo of a hamburger"', "SD3 on a GPU (gated weights)"),
    ('python launch.py prompt="a red mushroom" resume=latest trainer.steps=2000', "go on with the last run"),
    ('python launch.py -m prompt="a green cone" seed=0,1,2', "several runs"),
)
FLAGS = (
    ("--config FILE", "a file of threestudio, of the reference, of a run (configs/parsed.yaml), or a preset's name"),
    ("--train, --validate, --test, --export", "mode= of the run, as in threestudio"),
    ("--gpu N", "CUDA device, unless CUDA_VISIBLE_DEVICES is set"),
    ("--verbose", "log_level=debug"),
    ("strict=false", "leave out what such a file asks for and is not here, instead of refusing it"),
    ("init=PATH", "weights= by the reference's name: begin with the scene of that run, or with a mesh"),
    ("--cfg", "print the settings and stop"),
    ("-m, --multirun", "one run for each combination of comma-separated values"),
    ("--version", "print the version"),
)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(str(item) for item in value) + "]"
    return str(value) if value != "" else "''"


def _line(key: str, leaf: Leaf, value: Any) -> str:
    rule, extra = leaf.rule, ""
    if "choices" in rule:
        extra = f" ({', '.join(choice or repr(choice) for choice in rule['choices'])})"
    elif rule.get("ramp"):
        extra = " (a number, or a list over steps)"
    return f"  {key}={_value(value)}".ljust(46) + f" {rule['help']}{extra}"


def text() -> str:
    """All of it."""
    lines = ["threestudio_rf: text to 3D and more by score distillation from frozen priors.", ""]
    lines += ["usage: python launch.py [flags] [key=value ...]", "", "examples:"]
    for command, what in EXAMPLES:
        lines += [f"  {command}", f"      {what}"]
    lines += ["", "flags:"] + [f"  {flag:<40} {what}" for flag, what in FLAGS]
    lines += ["", "presets and groups (group=name):"]
    lines += [f"  {group:<12} {', '.join(choices(group))}" for group in groups()]
    lines += ["", "settings, as a command without others uses them (presets and groups change some of them):"]
    known, used = leaves(), defaults()
    lines += [_line(key, known[key], used[key]) for key in known if key not in ("version", "experiment", "preset")]
    lines += ["", "lists over steps: [v0,v1,end]  [start,v0,v1,end]  [s0,v0,v1,s1,v2,s2,...]"]
    return "\n".join(lines)
