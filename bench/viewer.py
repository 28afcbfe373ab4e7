"""The viewer's cost per step while nobody looks: steps of the default run with an open viewer and without, in turn.

    python bench/viewer.py [--threads 2] [--blocks 12] [--steps 10]

Blocks of steps of one run alternate, an open page behind the loop in every second one; opening and closing it are not
counted. Medians of all steps of either kind, and of what showing a step took. Goal: at most 1.02.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.app.build.method import build_optimiser, lift_settings
from threestudio_rf.app.build.scene import build_prior, build_scene
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.app.tasks.output.viewer import open_viewer
from threestudio_rf.trainer.lift import lift

WARM = 20
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = typed(compose(["prompt='a red mushroom'", "viewer=true", "viewer_port=0"]))
    prior, scene = build_prior(config.prior, CPU), build_scene(config.scene, config.seed, CPU)
    conditions, negative = embed_views(config, prior)
    optimiser = build_optimiser(config, scene)
    states = lift(
        scene, prior, conditions, negative=negative, optimiser=optimiser, settings=lift_settings(config), device=CPU
    )
    for _ in range(WARM):
        next(states)
    plain: list[float] = []
    watched: list[float] = []
    shown: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        made = Result(Run(config, Path(folder), CPU))
        for block in range(2 * options.blocks):
            viewer = open_viewer(made) if block % 2 else None
            for _ in range(options.steps):
                begun = time.perf_counter()
                state = next(states)
                if viewer is not None:
                    stepped = time.perf_counter()
                    viewer.show(state, Stop())
                    shown.append(time.perf_counter() - stepped)
                (plain if viewer is None else watched).append(time.perf_counter() - begun)
            if viewer is not None:
                viewer.close()
    without, with_it, show = (1e3 * statistics.median(times) for times in (plain, watched, shown))
    print(
        f"{len(plain)} steps of either kind, {options.threads} threads: without {without:.1f} ms, with {with_it:.1f} ms"
    )
    print(f"ratio {with_it / without:.3f}; showing a step itself {show:.3f} ms")


if __name__ == "__main__":
    main()
