"""Draw the training curves of the embedded networks from the CSV files that `task=train_tiny` keeps.

python bench/curves.py --folder docs/training --out docs/images/training.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

PANELS = (
    ("vae", "psnr", "first stage: PSNR of a batch, dB"),
    ("sd3", "loss", "tiny-sd3: velocity error"),
    ("judge", "shape", "judge: shape accuracy of a batch"),
)


def read(file: Path, column: str) -> tuple[list[float], list[float]]:
    """Steps and values, smoothed by an exponential mean of weight 0.1."""
    steps: list[float] = []
    values: list[float] = []
    with file.open(newline="") as handle:
        for line in csv.DictReader(handle):
            value = float(line[column])
            values.append(value if not values else 0.9 * values[-1] + 0.1 * value)
            steps.append(float(line["step"]))
    return steps, values


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/training"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/training.png"))
    options = parser.parse_args()
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 3.4), constrained_layout=True)
    for axis, (part, column, title) in zip(axes, PANELS, strict=True):
        axis.plot(*read(options.folder / f"{part}.csv", column))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if column == "loss":
            axis.set_yscale("log")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=80)
    print(options.out)


if __name__ == "__main__":
    main()
