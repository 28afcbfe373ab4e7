"""task=grid: one `lift` per method, prior, prompt and seed, each in its folder; then one table and one picture of all.

A cell that has finished with the same settings is not run again, one that was cut off goes on from its checkpoint, one
that failed is tried again and shown with its error.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from threestudio_rf.app.console import LOG, Progress, open_log
from threestudio_rf.app.errors import FAILED, GOOD, INTERRUPTED, TERMINATED, UserError, user_path
from threestudio_rf.app.report.grid_page import write_grid_page
from threestudio_rf.app.report.grid_table import Result, write_grid
from threestudio_rf.app.run.folder import read_object, slug
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.run.side_by_side import jobs_of, last_error, side_by_side
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import choices
from threestudio_rf.app.settings.train_tiny import GridConfig
from threestudio_rf.core.files import own_file, write_text

STOPPED = (INTERRUPTED, TERMINATED)


@dataclass(frozen=True)
class Cell:
    """One run: its labels, the overrides that make it, and the folder that its runs lie in."""

    method: str
    prior: str
    prompt: str
    seed: int
    overrides: tuple[str, ...]
    folder: Path

    @property
    def note(self) -> Path:
        """The file of what is known of its last run."""
        return self.folder / "cell.json"

    @property
    def output(self) -> Path:
        """The file that its runs print into."""
        return self.folder / "output.txt"

    def arguments(self) -> list[str]:
        """The command line of its run, which goes on with one that was cut off."""
        line = [*self.overrides, f"exp_root_dir={self.folder.parent}", f"name={self.folder.name}"]
        begun = self.known().get("overrides") == list(self.overrides)
        return [*line, "resume=latest"] if begun and any(self.folder.glob("*@*/ckpts/*.ckpt")) else line

    def known(self) -> dict[str, Any]:
        """`cell.json`; empty when there is none."""
        return read_object(self.note)

    def write(self, **more: Any) -> None:
        """Write `cell.json`: the overrides and what else is known."""
        write_text(self.note, json.dumps({"overrides": self.overrides, **more}, indent=2) + "\n")

    def result(self) -> Result:
        """Its figures where it has finished with these overrides, else its error or nothing."""
        known = self.known() if self.known().get("overrides") == list(self.overrides) else {}
        run = self.folder / str(known["run"]) if known.get("run") else None
        figures = None if run is None else read_object(run / "metrics.json") or None
        error = "" if figures is not None else known.get("error", "not run")
        return Result(self.method, self.prior, self.prompt, self.seed, figures=figures, error=error, run=run)


def labelled(item: str, group: str) -> tuple[str, list[str]]:
    """Label and overrides of `<label> [key=value ...]`; the label itself is the choice of `group` unless one is given.

    UserError for an empty item and for parts that are not key=value.
    """
    label, *rest = shlex.split(item) or [""]
    wrong = [part for part in rest if "=" not in part]
    if not label or "=" in label or wrong:
        raise UserError(f"grid: {item!r}: expected `<label> [key=value ...]`")
    return label, rest if any(part.startswith(f"{group}=") for part in rest) else [f"{group}={label}", *rest]


def cells_of(config: GridConfig, folder: Path) -> list[Cell]:
    """All cells, in the order method, prior, prompt, seed. Of settings for the same key the one of the method is
    taken, then of the prior, then of `set`. UserError for a grid that is empty or names a cell twice."""
    for key, value in (("methods", config.methods), ("priors", config.priors), ("prompts", config.prompts)):
        if not value:
            known = ", ".join(name for name in choices("grid") if name != "none")
            raise UserError(f"grid.{key}=[]: expected at least one; choose a grid: grid=<one of {known}>")
    methods = [labelled(item, "loss") for item in config.methods]
    priors = [labelled(item, "prior") for item in config.priors]
    found = []
    for (method, of_method), (prior, of_prior), prompt, seed in product(methods, priors, config.prompts, config.seeds):
        items = [*config.set, *of_prior, *of_method, f"prompt={prompt}", f"seed={seed}"]
        overrides = tuple({item.partition("=")[0]: item for item in items}.values())
        name = slug(f"{method}+{prior}+{slug(prompt)}+seed{seed}")
        found.append(Cell(method, prior, prompt, seed, overrides, folder / "cells" / name))
    if len({cell.folder for cell in found}) < len(found):
        raise UserError("grid: a method, prior, prompt or seed occurs twice; labels must differ")
    return found


def command(run: Run) -> int:
    """Run what has not finished yet, then write tables, picture and page of all; exit code 1 when a cell has failed."""
    settings = run.config.grid
    jobs = jobs_of(settings.jobs)
    cells = cells_of(settings, run.folder)
    waiting = [cell for cell in cells if cell.result().figures is None]
    LOG.info("grid %s: %d cells, %d of them finished", settings.name, len(cells), len(cells) - len(waiting))
    with Stop() as stop:
        bar = Progress(len(cells), len(cells) - len(waiting))
        if jobs == 0:
            runner = _here(run, waiting)
        else:
            runner = side_by_side(waiting, jobs, stop, line=_begin, output=lambda cell: cell.output)
        stopped = 0
        for cell, code in runner:
            error = "" if code == GOOD else last_error(cell.output)
            cell.write(exit_code=code, error=error or "stopped", run=_last_run(cell))
            if code in STOPPED:
                stopped = code
                break
            bar.update(bar.step + 1, {"cell": cell.folder.name, "result": error or "finished"})
            if error:
                LOG.warning("%s: %s", cell.folder.name, error)
        bar.close()
    results = [cell.result() for cell in cells]
    written = write_grid(run.folder, results, title=settings.name, docs=settings.docs)
    for path in [*written, write_grid_page(run.folder, results, settings.name)]:
        LOG.info("wrote %s", path)
    if stop.asked or stopped:
        return stop.code if stop.asked else stopped
    return GOOD if all(result.figures is not None for result in results) else FAILED


def folder_of(config: Config) -> Path:
    """Where a grid is kept: always the same folder, so that it can go on."""
    return user_path(config.exp_root_dir, "exp_root_dir").absolute() / "grid" / slug(config.grid.name)


def _begin(cell: Cell) -> list[str]:
    """Make its folder and note that it has begun; its command line."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    line = cell.arguments()
    cell.write(error="stopped")
    return line


def _here(run: Run, cells: Sequence[Cell]) -> Iterator[tuple[Cell, int]]:
    """One after the other in this process; what they print goes to their output.txt."""
    if run.start is None:
        raise UserError("grid.jobs=0: expected a command line that can start others, use grid.jobs=1")
    for cell in cells:
        line = _begin(cell)
        with own_file(cell.output).open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            code = run.start(line)
        open_log(run.config.log_level, run.folder / "log.txt")
        yield cell, code


def _last_run(cell: Cell) -> str:
    """The folder of its last run, by its name."""
    runs = sorted(path.name for path in cell.folder.glob("*@*") if path.is_dir())
    return runs[-1] if runs else ""
