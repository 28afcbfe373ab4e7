"""One run: its settings, folder, device and the checkpoint it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.build.start import MESH_FILES
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError, user_path
from threestudio_rf.app.run.folder import latest, run_of
from threestudio_rf.app.settings.compose import differences, from_text, on_top
from threestudio_rf.app.settings.config import Config
from threestudio_rf.trainer.checkpoint import Loaded, load
from threestudio_rf.trainer.ranks import ALONE, Ranks

SHARED = ("radius", "encoding", "field", "background")
"""What a scene that begins with one of another kind takes over of its settings."""


@dataclass(frozen=True)
class Run:
    """Everything a command is given. `resumed` is the checkpoint of `resume=` or `weights=`."""

    config: Config
    folder: Path
    device: torch.device
    resumed: Loaded | None = None
    start: Callable[[list[str]], int] | None = None
    """Runs another command line in this process, for a grid."""
    ranks: Ranks = ALONE
    """The processes of this run; only the first has a folder."""

    def save(self, *names: str) -> Path:
        """A path below `save/`."""
        return self.folder.joinpath("save", *names)


def run_text(config: Config) -> str:
    """The text after which a run folder is named."""
    return config.tag or config.prompt or config.task


def find_checkpoint(config: Config) -> Path | None:
    """The file or folder that `resume=` or `weights=` means; UserError when there is none."""
    wanted = config.resume or config.weights
    if not wanted:
        return None
    if wanted == "latest":
        found = latest(config.exp_root_dir, config.name, run_text(config))
        if found is None:
            raise UserError(
                f"resume=latest: no run of {run_text(config)!r} with a checkpoint below "
                f"{Path(config.exp_root_dir) / config.name}"
            )
        return found
    path = user_path(wanted, "resume" if config.resume else "init")
    if not path.exists():
        raise UserError(f"{'resume' if config.resume else 'init'}={wanted}: no such file or folder")
    if path.is_file() and path.suffix.lower() in MESH_FILES:
        if config.resume or SCENES[config.scene.name].start is None:
            raise UserError(f"{wanted} is a mesh: it can begin a new run, experiment=tiny_refine init={wanted}")
        return None
    if path.is_dir() and not any((path / name).exists() for name in ("ckpts", "manifest.json", "last.ckpt")):
        _no_run(path, f"{'resume' if config.resume else 'init'}={wanted}")
    return path


def _no_run(folder: Path, given: str) -> None:
    """UserError for a folder without a checkpoint, with the newest run in it or the run that it lies in; nothing where
    it holds checkpoints."""
    if any(folder.glob("*.ckpt")):
        return
    runs = [last.parents[1] for depth in ("*", "*/*") for last in folder.glob(f"{depth}/ckpts/last.ckpt")]
    newest = max(runs, key=lambda run: run.stat().st_mtime, default=None)
    around = next((parent for parent in folder.absolute().parents if (parent / "ckpts").is_dir()), None)
    hint = f"; the newest run in it is {newest}" if newest else f"; it lies in the run {around}" if around else ""
    raise UserError(f"{given}: the folder is no run, which has its checkpoints in ckpts{hint}")


def open_checkpoint(path: Path) -> Loaded:
    """The newest good checkpoint at `path`; each damaged one that was passed over is told."""
    loaded = load(path)
    for problem in loaded.passed_over:
        LOG.warning("%s", problem)
    if loaded.passed_over:
        LOG.warning("using the checkpoint before: %s (step %d)", loaded.path, loaded.state["step"])
    return loaded


def merge_stored(config: Config, overrides: list[str], loaded: Loaded) -> Config:
    """The settings of a resumed run under the changes of this command line.

    An experiment that is named and differs from the stored one replaces its settings, and a run that only starts from
    stored weights (`weights=`, `init=`) keeps none of them but the scene's, unless others are named; then the prior may
    be another one too. Settings that the stored scene
    or prior does not fit raise UserError with their keys; the others are allowed and logged.
    """
    stored = from_text(loaded.state["config"], str(loaded.path))
    named = any(item.startswith("experiment=") for item in overrides)
    same = bool(config.resume) and (not named or config.experiment == stored.experiment)
    merged = on_top(stored, overrides) if same else config
    row = SCENES[config.scene.name]
    another = row.start is not None and row is not SCENES.get(stored.scene.name)
    clash = [line for line in differences(stored, config)[0] if line.startswith(_named(overrides, SHARED))]
    if config.weights and another:
        merged.scene = replace(config.scene, **{name: getattr(stored.scene, name) for name in SHARED})
    elif config.weights and not any(item.startswith("scene") for item in overrides):
        merged.scene = stored.scene
    structural, other = differences(stored, merged)
    if config.weights:
        structural, other = clash if another else [line for line in structural if line.startswith("scene.")], []
    if structural:
        raise UserError(
            f"{loaded.path} does not fit these settings: {'; '.join(structural)}; leave them as they were stored, "
            "or begin a new run"
        )
    for line in other:
        LOG.info("changed on resume: %s", line)
    merged.resume, merged.weights = config.resume, config.weights
    if run_of(loaded.path) is None:
        merged.exp_root_dir = config.exp_root_dir
    return merged


def _named(overrides: list[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """The settings of those parts of the scene that a command line names, each with its colon."""
    keys = [item.lstrip("+").partition("=")[0] for item in overrides]
    return tuple(f"{key}:" for key in keys if key.startswith(tuple(f"scene.{name}" for name in names)))


def home(config: Config, path: Path, argv: list[str]) -> Path | None:
    """The run folder that results of a resumed run join: the one that was named, wherever it lies by now, unless this
    command line names an exp_root_dir that it does not lie in."""
    folder = run_of(path)
    if folder is None or not any(item.startswith("exp_root_dir=") for item in argv):
        return folder
    return folder if user_path(config.exp_root_dir, "exp_root_dir").resolve() in folder.resolve().parents else None
