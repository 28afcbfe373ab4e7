"""A step of `lift` today against that of an older commit, in one run.

    python bench/against.py [--commit 243884e --then tiny] [--now tiny_sd3] [--warm 100] [--steps 40] [--threads 2]

The commit (243884e is 0.4.0, whose `experiment=tiny` is today's `tiny_sd3`) is unpacked into a temporary folder. Two
processes, each with one tree, are given `--threads` and take steps in turn with as many of them as their tree does by
default; medians of both, by the clock and of processors, and their ratios.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("build", "build.method", "build.scene", "build.views", "compose", "settings.compose")
"""Where in `app` the functions were and are."""


def function(name: str) -> Any:
    """A function of the application, wherever this tree has it."""
    for place in PLACES:
        try:
            module = importlib.import_module(f"threestudio_rf.app.{place}")
        except ModuleNotFoundError:
            continue
        if name in vars(module):
            return vars(module)[name]
    raise SystemExit(f"no {name} in this tree")


def step_threads(config: Any) -> AbstractContextManager[Any]:
    """The threads that this tree takes its steps with; those it was given where it says nothing of them."""
    try:
        module = importlib.import_module("threestudio_rf.app.tasks.lift")
    except ModuleNotFoundError:
        return nullcontext()
    own = vars(module).get("step_threads")
    return nullcontext() if own is None else own(config)  # type: ignore[no-any-return]


def serve(experiment: str, threads: int) -> None:
    """Take one step for every line on stdin and print its seconds, by the clock and of processors."""
    sys.path.insert(0, os.getcwd())
    import torch

    from threestudio_rf.trainer.lift import lift
    from threestudio_rf.trainer.optim import make_optimiser

    torch.set_num_threads(threads)
    config = function("typed")(function("compose")(["prompt='a red mushroom'", f"experiment={experiment}"]))
    device = torch.device("cpu")
    prior, scene = function("build_prior")(config.prior, device), function("build_scene")(config.scene, 0, device)
    conditions, negative = function("embed_views")(config, prior)
    optimiser = make_optimiser(scene, function("rates")(config), weight_decay=config.optim.weight_decay)
    settings = function("lift_settings")(config)
    run = lift(scene, prior, conditions, negative=negative, optimiser=optimiser, settings=settings)
    with step_threads(config):
        for _ in sys.stdin:
            started = time.perf_counter(), time.process_time()
            next(run)
            print(time.perf_counter() - started[0], time.process_time() - started[1], flush=True)


def worker(tree: Path, experiment: str, threads: int) -> subprocess.Popen[str]:
    """A process that takes the steps of a tree."""
    line = [sys.executable, __file__, "--serve", experiment, "--threads", str(threads)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)


def step(process: subprocess.Popen[str]) -> list[float]:
    """Seconds of one step of that process, by the clock and of processors."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return [float(word) for word in process.stdout.readline().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="243884e")
    parser.add_argument("--then", default="tiny")
    parser.add_argument("--now", default="tiny_sd3")
    parser.add_argument("--warm", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads)
        return
    with tempfile.TemporaryDirectory() as older:
        archive = subprocess.run(["git", "archive", options.commit], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(older, filter="fully_trusted")
        trees = {"then": (Path(older), options.then), "now": (ROOT, options.now)}
        workers = {name: worker(tree, experiment, options.threads) for name, (tree, experiment) in trees.items()}
        taken: dict[str, list[list[float]]] = {name: [] for name in workers}
        for number in range(options.warm + options.steps):
            for name, process in workers.items():
                seconds = step(process)
                if number >= options.warm:
                    taken[name].append(seconds)
        for process in workers.values():
            process.communicate()
    for i, what in enumerate(("by the clock", "of processors")):
        then, now = (1000 * statistics.median(seconds[i] for seconds in taken[name]) for name in ("then", "now"))
        print(f"{options.commit} {options.then}: {then:.1f} ms {what}; now {options.now}: {now:.1f}", end="")
        print(f"; {then / now:.2f} times as fast")


if __name__ == "__main__":
    main()
