"""Optional packages: imported where they are used; where one is missing the run says how to get it and goes on."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType

from threestudio_rf.app.console import LOG
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import value_of

Publish = Callable[[int, Mapping[str, float]], None]


def optional(module: str, instead: str) -> ModuleType | None:
    """The module, or None with one line that installs it and says what is done `instead`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        LOG.warning("%s is not usable (%s); pip install %s; %s", module, error, module, instead)
        return None


def open_wandb(run: Run) -> Publish | None:
    """A function that sends a row of figures to Weights & Biases; None without its package."""
    wandb = optional("wandb", "the figures are in csv_logs/metrics.csv")
    if wandb is None:
        return None
    settings = dataclasses.asdict(run.config)
    started = wandb.init(project="threestudio_rf", name=run.folder.name, dir=str(run.folder), config=settings)

    def publish(step: int, row: Mapping[str, float]) -> None:
        started.log(dict(row), step=step)

    return publish


LOGGERS: dict[str, Callable[[Run], Publish | None]] = {"wandb": open_wandb}
"""Every logger by the setting that asks for it."""


def open_loggers(run: Run) -> Publish:
    """A function that sends a row of figures to every logger that the settings ask for."""
    opened = [LOGGERS[name](run) for name in LOGGERS if value_of(run.config, name)]

    def publish(step: int, row: Mapping[str, float]) -> None:
        for send in filter(None, opened):
            send(step, row)

    return publish
