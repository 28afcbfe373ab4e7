"""One run by several processes: who may, and how they meet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch

from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import flat
from threestudio_rf.app.settings.config import Config
from threestudio_rf.trainer.ranks import ALONE, Ranks, join, leave
from threestudio_rf.version import __version__

PLACES = ("device", "exp_root_dir", "resume", "weights", "prior.cache")
"""Settings that may differ from machine to machine."""


def processes() -> int:
    """How many processes there are. UserError where WORLD_SIZE is no number."""
    given = os.environ.get("WORLD_SIZE") or "1"
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"WORLD_SIZE={given}: expected a number of processes, as torchrun sets it")
    return int(given)


def alone(what: str) -> None:
    """UserError for `what` by several processes."""
    if processes() > 1:
        raise UserError(
            f"WORLD_SIZE={processes()}: several processes train one object (task=lift mode=train), not {what}; "
            "start this without torchrun"
        )


def several(config: Config) -> None:
    """UserError for what several processes cannot do, before any of them waits for another."""
    size = processes()
    if config.task != "lift" or config.mode != "train":
        alone(f"task={config.task} mode={config.mode}")
    if config.prompt_file:
        alone("prompt_file")
    image, row = config.scene.image, SCENES[config.scene.name]
    key, counts = "camera.views", list(config.camera.views)
    if row.banded and counts == [1]:
        key, counts = "camera.sizes", list(config.camera.sizes)
    if not row.posed:
        key, counts = "scene.image.per_step", [image.per_step or image.particles]
    if any(count % size for count in counts):
        raise UserError(f"{key}={counts}: expected multiples of {size}, the number of processes")


def together(config: Config, device: torch.device, step: int | None = None) -> Ranks:
    """Meet the others, and be sure that they do the same from the same stored step. UserError without a rendezvous, and
    for another version or other settings than those of the first process."""
    if processes() == 1:
        return ALONE
    try:
        ranks = join(os.environ, device)
    except ValueError as error:
        raise UserError(f"{error}; start with: torchrun --standalone --nproc_per_node N launch.py ...") from None
    try:
        same(ranks.all(facts(config, step)))
    except UserError:
        leave(ranks)
        raise
    return ranks


def facts(config: Config, step: int | None) -> dict[str, str]:
    """Everything that decides the numbers of a run, by name: versions, the stored step, settings without places."""
    found = {"version": __version__, "torch": torch.__version__, "checkpoint of step": str(step)}
    return found | {key: repr(value) for key, value in flat(config).items() if key not in PLACES}


def same(said: Sequence[Mapping[str, str]]) -> None:
    """UserError where a process says something else than the first one."""
    for other, facts in enumerate(said):
        for key in [*said[0], *facts]:
            ours, theirs = (of.get(key, "nothing") for of in (said[0], facts))
            if ours != theirs:
                raise UserError(f"{key}: process 0 has {ours}, process {other} has {theirs}; start all alike")
