"""One run by two gloo processes against one: the same object, and how much faster.

    python bench/ranks.py [--experiment tiny tiny_sd3] [--steps 50] [--repeats 3] [key=value ...]

In turn, within one run, each from a fresh object: one process with one thread, two processes with one thread each, one
process with two threads. Told: medians of the seconds that the steps took after `--warm` of them, by the clock and of
the first process's processor (what two free cores would give without waiting), their ratios, and how far the scene is
from that of one process with one thread: the gradient of the first step and the parameters at the end, relative to the
largest number of each tensor, and eight pictures. What one process with two threads differs by is what rounding alone
does. With `optim.eps=1e-6` AdamW no longer moves an entry by a whole step for a gradient that is only rounding.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, multiprocessing

from threestudio_rf.app.build.method import build_optimiser, lift_settings
from threestudio_rf.app.build.scene import build_prior, build_scene
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.base import Scene
from threestudio_rf.scenes.camera import sphere_views
from threestudio_rf.trainer.lift import lift
from threestudio_rf.trainer.ranks import ALONE, Ranks, join, leave

CPU = torch.device("cpu")
WAYS = (("one process, one thread", False, 1), ("two processes, one thread each", True, 1))
WAYS += (("one process, two threads", False, 2),)


Seconds = tuple[float, float]


class End(NamedTuple):
    """The scene that the steps end with, and the gradients of the first of them."""

    scene: Scene
    first: list[Tensor]


def steps(config: Config, prior: Prior, ranks: Ranks, count: int, warm: int) -> tuple[Seconds, End]:
    """Seconds of `count` steps after `warm` others, by the clock and of the processor, and where they end."""
    scene = build_scene(config.scene, config.seed, CPU)
    conditions, negative = embed_views(config, prior)
    optimiser = build_optimiser(config, scene)
    run = lift(
        scene,
        prior,
        conditions,
        negative=negative,
        optimiser=optimiser,
        settings=lift_settings(config),
        ranks=ranks,
    )
    next(run)
    first = [p.grad.clone() for p in scene.parameters() if p.grad is not None]
    for _ in range(warm - 1):
        next(run)
    ranks.wait()
    started = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(run)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    return seconds, End(scene, first)


def work(rank: int, port: int, options: argparse.Namespace) -> None:
    """What each of the two processes does: the first one alone, then both, then the first one again."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join(os.environ, CPU)
    for experiment in options.experiment:
        config = typed(compose(["prompt='a red mushroom'", f"experiment={experiment}", *options.more]))
        prior = build_prior(config.prior, CPU)
        seconds: dict[str, list[Seconds]] = {name: [] for name, *_ in WAYS}
        ends: dict[str, End] = {}
        for _ in range(options.repeats):
            for name, both, threads in WAYS:
                ranks.wait()
                torch.set_num_threads(threads)
                if both or ranks.first:
                    found, ends[name] = steps(
                        config, prior, ranks if both else ALONE, options.steps - options.warm, options.warm
                    )
                    seconds[name].append(found)
        if ranks.first:
            tell(experiment, seconds, ends)
    leave(ranks)


def tell(experiment: str, seconds: dict[str, list[Seconds]], ends: dict[str, End]) -> None:
    """Print medians, ratios and differences."""
    for i, what in enumerate(("by the clock", "of the processor")):
        median = {name: statistics.median(value[i] for value in values) for name, values in seconds.items()}
        alone, both, threads = (median[name] for name, *_ in WAYS)
        for name, values in seconds.items():
            told = ", ".join(f"{value[i]:.2f}" for value in values)
            print(f"{experiment}, {what}: {name:32s} {median[name]:7.2f} s of {told}")
        print(
            f"{experiment}, {what}: two processes are {alone / both:.2f} times as fast as one with one thread", end=""
        )
        print("" if i else f", {threads / both:.2f} times as fast as one with two")
    one = ends[WAYS[0][0]]
    for name, *_ in WAYS[1:]:
        found = ", ".join(f"{what} {value:.1e}" for what, value in apart(one, ends[name]).items())
        print(f"{experiment}: {name} from one with one: {found}", flush=True)


@torch.no_grad()
def apart(one: End, other: End) -> dict[str, float]:
    """Largest differences, of numbers relative to the largest of their tensor."""

    def largest(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
        pairs = zip(ours, theirs, strict=True)
        return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item() for a, b in pairs)

    pictures = [end.scene.render(sphere_views(8, height=64, width=64)).rgb for end in (one, other)]
    return {
        "first gradient": largest(one.first, other.first),
        "parameters": largest(one.scene.parameters(), other.scene.parameters()),
        "pictures": (pictures[0] - pictures[1]).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", nargs="+", default=["tiny", "tiny_sd3"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options, more = parser.parse_known_args()
    options.more = more
    multiprocessing.spawn(work, (port, options), nprocs=2)


if __name__ == "__main__":
    main()
