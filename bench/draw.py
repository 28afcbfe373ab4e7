"""Drawing without a gradient: frames of the video of a trained object, as today and one at a time by all threads.

    python bench/draw.py RUN [--frames 8] [--size 384]

RUN is the folder of a run, or a checkpoint. "one at a time" is what was done before: each frame by all threads, with
what a gradient would need kept. Both ways in turn, medians; pictures of both must be equal to 1/255.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.app.build.scene import build_scene
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks.output.look import renderings
from threestudio_rf.scenes import hashgrid
from threestudio_rf.scenes.camera import orbit

CPU = torch.device("cpu")


def kept(table, points, levels, multipliers) -> Tensor:  # type: ignore[no-untyped-def]
    """The features as they are found where a gradient is wanted."""
    return hashgrid._encode(table, points, multipliers, levels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    path = options.run / "ckpts" / "last.ckpt" if options.run.is_dir() else options.run
    config = typed(compose(["prompt='a red mushroom'"]))
    scene = build_scene(config.scene, 0, CPU)
    scene.load_state_dict(torch.load(path, weights_only=True)["scene"])
    camera = orbit(options.frames, elevation=25.0, height=options.size, width=options.size)
    new, spent, pictures = hashgrid.look_up, {"before": [], "now": []}, {}
    for _ in range(options.repeats):
        for name, seconds in spent.items():
            hashgrid.look_up = kept if name == "before" else new
            views = [camera.select([i]) for i in range(len(camera))] if name == "before" else [camera]
            begun = time.perf_counter()
            pictures[name] = torch.cat([seen.rgb for some in views for seen in renderings(scene, some, CPU)])
            seconds.append((time.perf_counter() - begun) / len(camera))
    before, now = (statistics.median(seconds) for seconds in spent.values())
    apart = (pictures["before"] - pictures["now"]).abs().max() * 255
    print(f"{options.size} pixels, {torch.get_num_threads()} threads: {before:.2f} s a frame before, {now:.2f} s now")
    print(f"ratio {before / now:.2f}; pictures differ by at most {apart:.4f} of 255")


if __name__ == "__main__":
    main()
