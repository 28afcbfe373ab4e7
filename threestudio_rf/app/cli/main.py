"""From a translated command line to a finished run folder and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.check.reads import check_named
from threestudio_rf.app.build.scene import pick_device, prior_id
from threestudio_rf.app.cli.prompts import run_prompts
from threestudio_rf.app.cli.together import alone, several, together
from threestudio_rf.app.console import LOG, close_log, open_log, traceback_place
from threestudio_rf.app.errors import FAILED, GOOD, INTERRUPTED, USER_ERROR, RunError, UserError, user_path
from threestudio_rf.app.report.overview import facts_of, write_pages
from threestudio_rf.app.run.folder import (
    Lock,
    create,
    discard,
    missing,
    probe,
    slug,
    write_command,
    write_start,
    write_status,
)
from threestudio_rf.app.run.places import check_places, resolve_paths
from threestudio_rf.app.run.run import Run, find_checkpoint, home, merge_stored, open_checkpoint, run_text
from threestudio_rf.app.settings.compose import compose, on_top, to_text, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import Launch
from threestudio_rf.app.settings.layers import on_preset
from threestudio_rf.app.tasks.grid import folder_of as grid_folder
from threestudio_rf.app.tasks.lift import follow
from threestudio_rf.app.tasks.table import command_of
from threestudio_rf.app.tasks.train_tiny import folder_of as tiny_folder
from threestudio_rf.core.files import remove_leftovers
from threestudio_rf.priors.base import PriorError
from threestudio_rf.trainer.checkpoint import CheckpointError, Loaded
from threestudio_rf.trainer.lift import DivergedError
from threestudio_rf.trainer.ranks import LostRankError, leave

MEMORY = (
    "out of GPU memory. What helps, in this order: smaller camera.sizes, scene.renderer.samples_per_ray=256, "
    "a smaller scene.renderer.ray_chunk, camera.views=[1], prior.dtype=bf16, preset=low_vram; "
    "the last checkpoint is kept"
)
OF_A_RUN = ("lift", "export", "evaluate")
"""Tasks whose results belong into the folder of the run that is resumed."""
FIXED = {"train_tiny": tiny_folder, "grid": grid_folder}
IN_THE_WAY: tuple[int, ...] = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.EROFS,
    errno.ENXIO,
)
IN_THE_WAY += (errno.EEXIST, errno.ENOTEMPTY)
"""What the system says where something else is than a file that may be read and written: the user can mend it."""
STATUS = {GOOD: "finished", FAILED: "failed", USER_ERROR: "refused"}


def settings_of(launch: Launch) -> tuple[Config, Loaded | None]:
    """The checked settings of a command line, merged with those of the checkpoint that is resumed."""
    config = typed(compose(launch.overrides))
    resolve_paths(config)
    path, loaded = find_checkpoint(config), None
    if path is not None:
        loaded = open_checkpoint(path)
        config = merge_stored(config, launch.overrides, loaded)
    check(config)
    several(config)
    check_named(config, launch.named)
    return config, loaded


def folder_of(config: Config, loaded: Loaded | None, suffix: str, argv: list[str]) -> Path:
    """The folder of a run: that of the resumed run for what belongs to it, the fixed one of train_tiny and grid, or a
    new one."""
    if config.task in FIXED:
        folder = FIXED[config.task](config)
        probe(folder)
        return folder
    if loaded is not None and config.resume and config.task in OF_A_RUN:
        own = home(config, loaded.path, argv)
        if own is not None:
            probe(own)
            return own
    return create(config.exp_root_dir, config.name, run_text(config), suffix=suffix)


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`; known errors become one paragraph, others one line with the traceback in log.txt."""
    try:
        return work()
    except (UserError, PriorError, CheckpointError) as error:
        return _told(USER_ERROR, str(error))
    except (RunError, DivergedError, LostRankError) as error:
        return _told(FAILED, str(error))
    except torch.OutOfMemoryError:
        return _told(FAILED, MEMORY)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "; free some space and go on with resume=" if error.errno == errno.ENOSPC else ""
        if error.errno in IN_THE_WAY:
            return _told(USER_ERROR, f"{error.filename2 or error.filename}: {error.strerror}")
        return _told(FAILED, f"{error}{hint}")
    except Exception as error:  # the last line of defence: a user sees one line, log.txt has the rest
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), "something unexpected happened"
        )
        if isinstance(error, MemoryError) or "can't allocate memory" in reason:
            reason = "not enough memory: smaller camera.sizes, scene.encoding.log2_table or export.resolution need less"
        return _told(FAILED, f"{reason[:300]} ({traceback_place()})")


def _told(code: int, text: str) -> int:
    LOG.debug("%s", traceback.format_exc())
    if code == USER_ERROR and os.environ.get("RANK", "0") != "0":
        return code
    LOG.log(45, "error: %s", " ".join(text.splitlines()))
    return code


Start = Callable[[list[str]], int]


def run_one(config: Config, loaded: Loaded | None, launch: Launch, start: Start, *, suffix: str = "") -> int:
    """One run in its folder, which may `start` others; prints `run: <folder>` at the end, whatever happened."""
    device = pick_device(config.device)
    ranks = together(config, device, None if loaded is None else loaded.state["step"])
    if not ranks.first:
        open_log("error")
        code = guarded(lambda: follow(Run(config, Path(), device, loaded, ranks=ranks)))
        leave(ranks)
        return code
    place = FIXED[config.task](config) if config.task in FIXED else root_of(config) / slug(config.name)
    absent = missing(place)
    folder = folder_of(config, loaded, suffix, launch.argv)
    fresh = folder in absent or folder.parent == place
    check_places(folder)
    lock = Lock(folder)
    lock.take()
    code, look = INTERRUPTED, only_looks(config, loaded)
    try:
        if loaded is not None:
            remove_leftovers(folder)
        open_log(config.log_level, folder / "log.txt")
        _record(config, folder, launch, look=look)
        run = Run(config, folder, device, loaded, start, ranks)
        code = guarded(lambda: command_of(config)(run))
    finally:  # also where the console is closed (`| head -1`)
        try:
            if not look:
                _close(folder, code)
                write_pages(config, folder, root_of(config), code)
        finally:
            lock.release()
            close_log()
            leave(ranks)
        gone = code == USER_ERROR and fresh and discard(folder, absent)
    if not gone:
        print(f"run: {folder}", flush=True)
    if code == GOOD and config.refine and config.task == "lift" and config.mode == "train":
        return guarded(lambda: refined(config, folder, launch, start, suffix=suffix))
    return code


def refined(config: Config, folder: Path, launch: Launch, start: Start, *, suffix: str) -> int:
    """The second stage of a finished run: another run, which begins with its mesh."""
    own = [item for item in launch.overrides if item.startswith(("scene.mesh.", "optim.lr_geometry="))]
    after = replace(on_top(on_preset(config, config.refine_with), own), weights=str(folder))
    if config.refine_steps is not None:
        after.trainer.steps = config.refine_steps
    loaded = open_checkpoint(folder)
    after = merge_stored(after, [], loaded)
    check(after)
    return run_one(after, loaded, launch, start, suffix=f"{suffix}-refined")


def root_of(config: Config) -> Path:
    """The folder of all results."""
    return user_path(config.exp_root_dir, "exp_root_dir")


def _record(config: Config, folder: Path, launch: Launch, *, look: bool) -> None:
    """Write how the run is made; of a look at a stored run only the command."""
    if look:
        write_command(folder, launch.argv)
        return
    raw = yaml.safe_dump({"overrides": launch.overrides}, allow_unicode=True, width=1000)
    prior = " ".join(value for value in prior_id(config.prior).values() if value)
    write_start(folder, parsed=recorded(config), raw=raw, argv=launch.argv, prior=prior)
    write_status(folder, facts_of(config))


def recorded(config: Config) -> str:
    """The settings as configs/parsed.yaml has them."""
    return to_text(replace(config, resume="", weights=""))


def only_looks(config: Config, loaded: Loaded | None) -> bool:
    """Whether a command adds to a stored run without changing how it was made: its record then stays as it is."""
    if loaded is None or not config.resume or config.task not in OF_A_RUN:
        return False
    return config.task != "lift" or config.mode != "train" or loaded.state["step"] >= config.trainer.steps


def _close(folder: Path, code: int) -> None:
    try:
        write_status(folder, {"status": STATUS.get(code, "interrupted"), "exit_code": code})
    except OSError as error:
        LOG.warning("run.json is not up to date: %s", error.strerror or error)


def run(launch: Launch, start: Start) -> int:
    """Everything behind launch.py; the exit code. `start` runs another command line in this process."""
    open_log("info")
    for note in launch.notes:
        if launch.show:  # what is printed is then a file
            print(note, file=sys.stderr)
        else:
            LOG.info("%s", note)
    if launch.multirun:
        alone("-m")
        from threestudio_rf.app.cli.sweep import sweep

        def one(config: Config, number: int) -> int:
            suffix = f"-{number}-seed{config.seed}"
            if config.prompt_file:
                if config.grid.jobs not in ("0", "1"):
                    raise UserError(f"grid.jobs={config.grid.jobs}: a sweep (-m) has its launcher for that")
                return _run_prompts(config, launch, start, suffix=suffix)
            return run_one(config, None, launch, start, suffix=suffix)

        return guarded(lambda: sweep(launch, one, guarded))
    return guarded(lambda: _run(launch, start))


def _run(launch: Launch, start: Start) -> int:
    config, loaded = settings_of(launch)
    open_log(config.log_level)
    if launch.show == "cfg":
        sys.stdout.write(to_text(config))
        return GOOD
    if config.prompt_file:
        return _run_prompts(config, launch, start)
    return run_one(config, loaded, launch, start)


def _run_prompts(config: Config, launch: Launch, start: Start, *, suffix: str = "") -> int:
    from threestudio_rf.app.cli.sweep import prompts_of

    def one(single: Config) -> int:
        return guarded(partial(run_one, single, None, launch, start, suffix=suffix))

    return run_prompts(config, prompts_of(Path(config.prompt_file)), launch.argv, one, recorded)
