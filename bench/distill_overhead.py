"""What a step of each method costs over the bare network calls it needs, on 2D latents of an embedded prior.

    python bench/distill_overhead.py [--prior tiny_sd3] [--methods sds rfds ...] [--repeats 30] [--particles 4]

A step is one of the `lift` loop: times, noise, predictions, residual, gradient, optimiser, figures. Its network calls
are recorded and then made again alone, with the same inputs; training calls of a twin with their backward pass. Steps
and calls of all methods are timed in turn, in the time of this process, so that other processes count less; medians.
Goal: at most 1.10.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.app.build.method import build_optimiser, build_twin, embed_roles, lift_settings
from threestudio_rf.app.build.scene import build_any, build_prior
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.priors.twin import Twin
from threestudio_rf.trainer.lift import LiftState, lift

METHODS = ("sds", "sjc", "rfds", "rfds_rev", "sdi", "csd", "nfsd", "bridge", "ism", "ucm", "vsd", "ours")
CPU = torch.device("cpu")


@dataclass
class Call:
    """One forward pass of the network: its inputs, whether it was learnt from, whether the twin's adapters were on."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    learns: bool
    awake: bool


@dataclass
class Recorder:
    """The calls of a prior's network since `calls` was emptied."""

    network: torch.nn.Module
    twin: Twin | None
    calls: list[Call] = field(default_factory=list)
    awake: bool = False
    active: bool = True

    def __post_init__(self) -> None:
        self.network.register_forward_pre_hook(self._record, with_kwargs=True)
        if self.twin is None:
            return
        self.wake = self.twin.awake

        @contextmanager
        def awake() -> Iterator[None]:
            with self.wake():
                self.awake = True
                yield
            self.awake = False

        self.twin.awake = awake  # type: ignore[method-assign]

    def _record(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.active:
            self.calls.append(Call(_detached(args), _detached(kwargs), torch.is_grad_enabled(), self.awake))

    def replay(self) -> None:
        """The same calls again, alone."""
        for call in self.calls:
            with self.wake() if call.awake else nullcontext(), torch.set_grad_enabled(call.learns):
                out = self.network(*call.args, **call.kwargs)
                if call.learns:
                    (out.sample if hasattr(out, "sample") else out[0]).square().mean().backward()


def _detached(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, dict):
        return {key: _detached(value) for key, value in values.items()}
    return type(values)(_detached(value) for value in values) if isinstance(values, tuple | list) else values


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call, of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


class Runner:
    """One method's loop and its times."""

    def __init__(self, method: str, options: argparse.Namespace) -> None:
        line = ["experiment=tiny_image", f"prior={options.prior}", f"loss={method}", "prompt='a red mushroom'"]
        config = typed(compose([*line, f"scene.image.particles={options.particles}", "trainer.steps=100000"]))
        prior = build_prior(config.prior, CPU)
        scene = build_any(config, lambda: prior, CPU)
        conditions, negative = embed_views(config, prior)
        twin = build_twin(config, prior, conditions)
        self.recorder = Recorder(prior.network, twin)  # type: ignore[attr-defined]
        optimiser = build_optimiser(config, scene)
        self.loop = lift(
            scene,
            prior,
            conditions,
            negative=negative,
            optimiser=optimiser,
            settings=lift_settings(config),
            first_step=options.start,
            extra=embed_roles(config, prior, views=False),
            twin=twin,
        )
        self.whole: list[float] = []
        self.bare: list[float] = []
        self.calls: list[float] = []

    def step(self) -> None:
        """One step, then its network calls alone."""
        self.recorder.calls.clear()
        self.recorder.active, found = True, list[LiftState]()
        self.whole.append(seconds(lambda: found.append(next(self.loop))))
        self.recorder.active = False
        self.calls.append(found[0].metrics["network_calls"])
        self.bare.append(seconds(self.recorder.replay))

    def row(self, method: str) -> str:
        """One line of the table."""
        whole, bare = statistics.median(self.whole[2:]), statistics.median(self.bare[2:])
        calls = statistics.fmean(self.calls[2:])
        return f"| {method} | {calls:.3g} | {1000 * bare:.1f} | {1000 * whole:.1f} | {whole / bare:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="tiny_sd3")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--particles", type=int, default=4)
    parser.add_argument("--start", type=int, default=0, help="first step of 100,000; later ones are in a second stage")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runners = {method: Runner(method, options) for method in options.methods}
    for _ in range(options.repeats + 2):
        for runner in runners.values():
            runner.step()
    print(f"{options.prior}, {options.particles} latents, {options.threads} threads, medians of {options.repeats}\n")
    print("| method | network calls per sample | calls alone, ms | step, ms | step / calls |")
    print("|---|--:|--:|--:|--:|")
    for method, runner in runners.items():
        print(runner.row(method))


if __name__ == "__main__":
    main()
