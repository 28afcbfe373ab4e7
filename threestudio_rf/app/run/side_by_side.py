"""Several runs at once, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.flags import PACKAGE
from threestudio_rf.core.files import own_file, read_text

T = TypeVar("T")
MOST = 64
WAIT = 0.2


def jobs_of(given: str) -> int:
    """How many runs at once: a number, or with `auto` one for each GPU, on a machine without one for each processor
    that this process may use. UserError for anything else."""
    if given == "auto":
        if torch.cuda.is_available():
            return torch.cuda.device_count()
        return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    if not given.isdigit() or int(given) > MOST:
        raise UserError(f"grid.jobs={given}: expected auto or a number from 0 to {MOST}")
    return int(given)


def environment(place: int, jobs: int) -> dict[str, str]:
    """The variables of a run in place `place` of `jobs`: one thread and, where there are GPUs, one of them in turn."""
    places = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}
    if jobs > 1:
        found["OMP_NUM_THREADS"] = "1"
        if torch.cuda.is_available():
            shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            count = torch.cuda.device_count()
            names = shown if len(shown) == count and shown[0] else [str(number) for number in range(count)]
            found["CUDA_VISIBLE_DEVICES"] = names[place % count]
    return found


def side_by_side(
    items: Sequence[T], jobs: int, stop: Stop, *, line: Callable[[T], list[str]], output: Callable[[T], Path]
) -> Iterator[tuple[T, int]]:
    """Runs the command `line` of each item, `jobs` at once, and yields each with its exit code as it ends; what it
    prints goes to its `output`. When a stop is asked the running ones finish their step and save."""
    waiting, free = deque(items), deque(range(jobs))
    running = dict[subprocess.Popen[bytes], tuple[T, int]]()
    asked = False
    while waiting or running:
        while waiting and free and not stop.asked:
            item, place = waiting.popleft(), free.popleft()
            command = [sys.executable, "-m", "threestudio_rf", *line(item)]
            with own_file(output(item)).open("wb") as file:
                variables = environment(place, jobs)
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
            running[process] = item, place
        if stop.asked and not asked:
            asked = True
            waiting.clear()
            for process in running:
                process.terminate()
        for process in [process for process in running if process.poll() is not None]:
            item, place = running.pop(process)
            free.append(place)
            yield item, int(process.returncode)
        time.sleep(WAIT)


def last_error(output: Path) -> str:
    """The line of what a run printed that says why it failed."""
    try:
        lines = [line for line in read_text(output, "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if not line.startswith("run: ")] or ["it printed nothing"])[-1]
