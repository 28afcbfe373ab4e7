"""The schema that Hydra, the command line and stored files are checked with: `Config` and the list of its leaves.

The module imports the standard library only, so that `--help` starts at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.app.settings.groups import (
    CameraConfig,
    CheckpointConfig,
    EvaluateConfig,
    ExportConfig,
    OptimConfig,
    PriorConfig,
    SampleConfig,
    SceneConfig,
    TrainerConfig,
    group,
    opt,
)
from threestudio_rf.app.settings.loss import LossConfig
from threestudio_rf.app.settings.train_tiny import GridConfig, TrainTinyConfig

Name = TypeVar("Name", bound=str)
VERSION = 1


@dataclass
class Config:
    """Everything."""

    version: int = opt(VERSION, "format of this file")
    task: str = opt("lift", "what to do")
    mode: str = opt("train", "for task=lift", choices=("train", "validate", "test", "export"))
    experiment: str = opt("tiny", "name of the experiment file")
    preset: str = opt("none", "name of the preset file")
    prompt: str = opt("", "the text")
    negative_prompt: str = opt("", "what to stay away from")
    prompt_file: str = opt("", "run the command for every line of this file")
    allow_empty_prompt: bool = opt(False, "run without a text")
    seed: int = opt(0, "the same seed gives the same result on a CPU", low=0, high=2**31 - 1)
    name: str = opt("tiny", "folder of the experiment below exp_root_dir")
    tag: str = opt("", "name of the run folder instead of the prompt")
    exp_root_dir: str = opt("outputs", "folder of all results")
    device: str = opt("auto", "auto, cpu, cuda or cuda:<number>")
    resume: str = opt("", "checkpoint or run folder to go on from; latest: the last run of this prompt")
    weights: str = opt("", "checkpoint whose scene is the start of a new run")
    refine: bool = opt(False, "then go on with the mesh of the result")
    refine_with: str = opt("refine", "preset of that second stage")
    refine_steps: int | None = opt(None, "its steps; null: the preset's", low=1)
    log_level: str = opt("info", "how much is printed", choices=("debug", "info", "warning"))
    wandb: bool = opt(False, "also log to Weights & Biases")
    viewer: bool = opt(False, "show the object in a browser while it is trained")
    viewer_port: int = opt(8080, "port of that page on this machine; 0: any free one", low=0, high=65535)
    prior: PriorConfig = group(PriorConfig)
    scene: SceneConfig = group(SceneConfig)
    camera: CameraConfig = group(CameraConfig)
    loss: LossConfig = group(LossConfig)
    optim: OptimConfig = group(OptimConfig)
    trainer: TrainerConfig = group(TrainerConfig)
    checkpoint: CheckpointConfig = group(CheckpointConfig)
    export: ExportConfig = group(ExportConfig)
    sample: SampleConfig = group(SampleConfig)
    edit: EditConfig = group(EditConfig)
    evaluate: EvaluateConfig = group(EvaluateConfig)
    train_tiny: TrainTinyConfig = group(TrainTinyConfig)
    grid: GridConfig = group(GridConfig)


class Leaf(NamedTuple):
    """One setting: its type as written, its default, and its rule with the help text."""

    type: Any
    default: Any
    rule: dict[str, Any]


@cache
def leaves() -> dict[str, Leaf]:
    """Every setting by its dotted key, in the order of declaration."""
    return _leaves(Config, "")


def _leaves(node: type, prefix: str) -> dict[str, Leaf]:
    found: dict[str, Leaf] = {}
    hints = get_type_hints(node)
    for item in dataclasses.fields(node):
        kind, key = hints[item.name], prefix + item.name
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found |= _leaves(kind, key + ".")
        else:
            default = item.default
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            found[key] = Leaf(kind, default, dict(item.metadata))
    return found


def one_of(value: str, names: tuple[Name, ...]) -> Name:
    """A setting as one of the names that a function takes; ValueError for any other text."""
    for name in names:
        if name == value:
            return name
    raise ValueError(f"got {value!r}, expected one of {', '.join(names)}")


def value_of(config: Config, key: str) -> Any:
    """The setting of a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
