"""Steps of the default object by one thread and by two: the loop's seconds of short runs, in turn, medians.

    python bench/threads.py [--steps 60] [--repeats 3] [key=value ...]

Whole runs of the command line, so that a step is what users have; ratios count, on an otherwise quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINE = ["prompt=a red mushroom", "trainer.validate_every=0", "trainer.progress=0", "camera.test_views=2"]
LINE += ["camera.video_scale=1", "export.resolution=16", "export.texture=none"]


def seconds(threads: int, steps: int, more: list[str]) -> float:
    """Of the loop of one run whose steps have so many threads."""
    with tempfile.TemporaryDirectory() as root:
        line = [*LINE, f"trainer.steps={steps}", f"trainer.threads={threads}", f"exp_root_dir={root}", *more]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run(
            [sys.executable, str(ROOT / "launch.py"), *line],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (found,) = Path(root).glob("*/*/metrics.json")
        return float(json.loads(found.read_text("utf-8"))["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    options, more = parser.parse_known_args()
    spent: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.repeats):
        for threads, found in spent.items():
            found.append(seconds(threads, options.steps, more))
    one, two = (statistics.median(found) for found in spent.values())
    print(f"{options.steps} steps: {one:.1f} s by one thread, {two:.1f} s by two; ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
