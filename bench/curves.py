"""Draw the training curves of the embedded networks from the CSV files that `task=train_tiny` keeps.

python bench/curves.py --folder docs/training --out docs/images/training.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

PANELS = (
    (("vae",), "psnr", "first stage: PSNR of a batch, dB"),
    (("sd3", "sd3_continued"), "loss", "tiny-sd3: velocity error"),
    (("sd",), "loss", "tiny-sd: eps error"),
    (("sd_v",), "loss", "tiny-sd-v: v error"),
    (
        ("instaflow_128", "instaflow_128_wider", "instaflow_128_octants", "instaflow_128_often"),
        "loss",
        "tiny-instaflow: velocity error",
    ),
    (("judge",), "shape", "judge: shape accuracy of a batch"),
)
"""Trainings that follow each other, the column and the title of each panel."""


def read(files: list[Path], column: str) -> tuple[list[float], list[float]]:
    """Steps, counted through all files, and values, smoothed by an exponential mean of weight 0.1 within each."""
    steps: list[float] = []
    values: list[float] = []
    for file in files:
        before, mean = (steps[-1] if steps else 0.0), None
        with file.open(newline="") as handle:
            for line in csv.DictReader(handle):
                value = float(line[column])
                mean = value if mean is None else 0.9 * mean + 0.1 * value
                values.append(mean)
                steps.append(before + float(line["step"]))
    return steps, values


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("docs/training"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/training.png"))
    options = parser.parse_args()
    figure, axes = pyplot.subplots(2, len(PANELS) // 2, figsize=(13, 6.4), constrained_layout=True)
    for axis, (parts, column, title) in zip(axes.flat, PANELS, strict=True):
        axis.plot(*read([options.folder / f"{part}.csv" for part in parts], column))
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
