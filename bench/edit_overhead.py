"""How much an edit takes above its bare network calls.

    python bench/edit_overhead.py [--prior tiny_sd3] [--pictures 1] [--pairs 9] [--threads 1]

Each method's edit is run once to write down what it asks the network; then the whole edit and the same calls alone are
timed one after the other, taking turns to be first. The ratio is the median over pairs. Encoding, decoding and texts
are outside of both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.core.random import generator, normal
from threestudio_rf.edit.irfds import IRFDS
from threestudio_rf.edit.method import METHODS
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny
from threestudio_rf.trainer.edit import begin

Work = Callable[[], Any]


def works(prior: Any, name: str, pictures: int) -> tuple[Work, Work, int]:
    """The edit, its network calls alone, and their number; long searches are cut to 20 steps."""
    settings = method_of(name, prior.name, EditConfig())
    if isinstance(settings, IRFDS):
        settings = replace(settings, steps=min(20, settings.steps))
    editing = begin(prior, settings, source=["a red ball"], target=["a blue ball"])
    x0 = normal((pictures, *prior.latent_shape), generator(0, 0, "bench"))

    def edit() -> None:
        for _ in editing.edit(x0, generator=generator(0, 0, "edit")):
            pass

    asked: list[tuple[Any, ...]] = []
    network = prior.predict
    prior.predict = lambda *call: asked.append(call) or network(*call)
    edit()
    del prior.predict

    def bare() -> None:
        for call in asked:
            network(*call)

    return edit, bare, len(asked)


def timed(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=EMBEDDED, default="tiny_sd3")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prior = load_tiny(options.prior)
    print(f"{options.prior}, {options.pictures} pictures, {options.threads} threads, {options.pairs} pairs")
    print("| method | network calls in a row | bare s | edit s | ratio |\n|---|---|---|---|---|")
    for name in METHODS:
        try:
            edit, bare, count = works(prior, name, options.pictures)
        except ValueError as error:
            print(f"| {name} | does not fit: {error} | | | |")
            continue
        seconds = []
        for number in range(options.pairs):
            both = {work: timed(work) for work in ((edit, bare) if number % 2 else (bare, edit))}
            seconds.append((both[bare], both[edit]))
        alone, whole = (statistics.median(column) for column in zip(*seconds, strict=True))
        ratio = statistics.median(b / a for a, b in seconds)
        print(f"| {name} | {count} | {alone:.3f} | {whole:.3f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
