"""What `task=` and `mode=` do: one plain table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from threestudio_rf.app import doctor, lift, look, sample
from threestudio_rf.app.config import Config
from threestudio_rf.app.console import LOG, peak_memory_mb
from threestudio_rf.app.errors import FAILED, GOOD
from threestudio_rf.app.evaluate import evaluate_scene, show
from threestudio_rf.app.run import Run
from threestudio_rf.export.mesh import EmptyGeometryError


def evaluate(run: Run) -> int:
    """The figures of a finished run, into its `metrics.json`."""
    scene, _, figures = lift.stored_scene(run)
    try:
        mesh = look.mesh_of(run, scene)
    except EmptyGeometryError as error:
        LOG.warning("no mesh: %s", error)
        mesh = None
    show(run, evaluate_scene(run, scene, mesh, figures | {"peak_memory_mb": peak_memory_mb()}))
    return GOOD


def export(run: Run) -> int:
    """The mesh of a finished run."""
    scene, step, _ = lift.stored_scene(run)
    try:
        look.export(run, scene, step)
    except (OSError, EmptyGeometryError) as error:
        LOG.error("no mesh: %s", error)
        return FAILED
    return GOOD


def validate(run: Run) -> int:
    """A few views of a finished run."""
    scene, step, _ = lift.stored_scene(run)
    look.validation(run, scene, step)
    return GOOD


def test(run: Run) -> int:
    """The turntable of a finished run."""
    scene, step, _ = lift.stored_scene(run)
    try:
        for path in look.test(run, scene, step):
            LOG.info("wrote %s", path)
    except OSError as error:
        LOG.error("the pictures could not be written: %s", error)
        return FAILED
    return GOOD


def train_tiny(run: Run) -> int:
    """One part of the embedded networks; the same command goes on where it stopped."""
    from threestudio_rf.priors.tiny import weights_folder
    from threestudio_rf.tiny.train import run_part, ship

    settings = run.config.train_tiny
    run_part(
        settings.part,
        run.folder,
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        per_shape=settings.per_shape,
        report=LOG.info,
    )
    if settings.ship:
        ship(run.folder, weights_folder())
        LOG.info("shipped to %s", weights_folder())
    return GOOD


def tiny_folder(config: Config) -> Path:
    """Where the parts are trained: always the same folder, so that they find each other and go on."""
    return Path(config.train_tiny.folder or Path(config.exp_root_dir) / "train_tiny").expanduser()


TASKS: dict[str, Callable[[Run], int]] = {
    "lift": lift.command,
    "sample": sample.command,
    "evaluate": evaluate,
    "export": export,
    "train_tiny": train_tiny,
    "doctor": doctor.command,
}
MODES: dict[str, Callable[[Run], int]] = {"train": lift.command, "validate": validate, "test": test, "export": export}


def command_of(config: Config) -> Callable[[Run], int]:
    """The function of a task, for lift of its mode."""
    return MODES[config.mode] if config.task == "lift" else TASKS[config.task]
