"""One run by several processes: who may, and how they meet."""

from __future__ import annotations

import os

import torch

from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.trainer.ranks import ALONE, Ranks, join


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
    image = config.scene.image
    key, counts = "camera.views", list(config.camera.views)
    if not SCENES[config.scene.name].posed:
        key, counts = "scene.image.per_step", [image.per_step or image.particles]
    if any(count % size for count in counts):
        raise UserError(f"{key}={counts}: expected multiples of {size}, the number of processes")


def together(device: torch.device) -> Ranks:
    """Meet the others. UserError without a rendezvous."""
    if processes() == 1:
        return ALONE
    try:
        return join(os.environ, device)
    except ValueError as error:
        raise UserError(f"{error}; start with: torchrun --standalone --nproc_per_node N launch.py ...") from None
