"""One run for each line of a file of prompts, one after the other or side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.console import LOG, open_log
from threestudio_rf.app.errors import FAILED, GOOD, INTERRUPTED, TERMINATED
from threestudio_rf.app.run.folder import finished
from threestudio_rf.app.run.run import run_text
from threestudio_rf.app.run.side_by_side import jobs_of, last_error, side_by_side
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.config import Config

INSTEAD = ("prompt_file=", "grid.jobs=")
"""What the command line of one prompt has not."""


def run_prompts(
    config: Config, prompts: list[str], argv: list[str], one: Callable[[Config], int], recorded: Callable[[Config], str]
) -> int:
    """GOOD, FAILED where one failed, or the code of a stop. `one` is a run in this process; `grid.jobs` above 1 starts
    the command line `argv` anew for each prompt. What is finished with the same settings is left out."""
    each = [replace(config, prompt=text, prompt_file="", grid=replace(config.grid, jobs="1")) for text in prompts]
    jobs, failed = jobs_of(config.grid.jobs), list[str]()
    for single in each:
        check(single)

    def left() -> Iterator[Config]:
        for number, single in enumerate(each, 1):
            open_log(config.log_level)
            LOG.info("run %d of %d: %s", number, len(each), single.prompt)
            done = finished(config.exp_root_dir, config.name, run_text(single), recorded(single))
            if done is None:
                yield single
            else:
                LOG.info("finished with these settings: %s", done)

    ends = ((single, one(single)) for single in left()) if jobs <= 1 else _started(list(left()), argv, jobs)
    for single, code in ends:
        if code in (INTERRUPTED, TERMINATED):
            return code
        if code != GOOD:
            failed.append(single.prompt)
    open_log(config.log_level)
    LOG.info("%d of %d runs are good%s", len(each) - len(failed), len(each), ":" if not failed else "; failed:")
    for prompt in failed:
        LOG.info("  %s", prompt)
    return FAILED if failed else GOOD


def _started(runs: Sequence[Config], argv: list[str], jobs: int) -> Iterator[tuple[Config, int]]:
    """Each run as a process of its own; what it says last is told as it ends. A stop ends with its code."""
    own = [item for item in argv if not item.startswith(INSTEAD)]
    with Stop() as stop, tempfile.TemporaryDirectory() as folder:
        files = {single.prompt: Path(folder) / f"{number}.txt" for number, single in enumerate(runs)}
        for single, code in side_by_side(
            runs,
            jobs,
            stop,
            line=lambda single: [*own, f"prompt={single.prompt}"],
            output=lambda single: files[single.prompt],
        ):
            said = files[single.prompt].read_text("utf-8", "replace").splitlines()
            where = next((line for line in reversed(said) if line.startswith("run: ")), "")
            if code == GOOD:
                print(where, flush=True)
            else:
                LOG.warning("%s: %s %s", single.prompt, last_error(files[single.prompt]), where)
            if not stop.asked:
                yield single, code
        if stop.asked:
            yield runs[0], stop.code
