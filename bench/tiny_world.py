"""What the shipped first stage and judge reach on held-out pictures, and what all weights weigh.

    python bench/tiny_world.py

PSNR of encode and decode over 1,000 renders of named colours; accuracy of the judge on 4,000 renders.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.priors.tiny import load_tiny_sd3, weights_folder
from threestudio_rf.tiny.train.data.stores import HELD_OUT_SEED
from threestudio_rf.tiny.train.judging import judge_accuracy
from threestudio_rf.tiny.train.stage import draw_images
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.views import random_world


def main() -> None:
    torch.set_num_threads(2)
    world, prior = random_world(100, HELD_OUT_SEED), load_tiny_sd3()
    values = []
    for number in range(20):
        images = draw_images(world, 50, generator(HELD_OUT_SEED, number, "held-out"))
        error = (prior.decode(prior.encode(images)) - images).square().mean(dim=(1, 2, 3))
        values.append(-10 * error.log10())
    psnr = torch.cat(values)
    print(f"first stage: PSNR {psnr.mean():.2f} dB, worst tenth below {psnr.quantile(0.1):.2f} dB, {len(psnr)} renders")
    accuracy = judge_accuracy(load_judge(weights_folder()), world, 4000, generator(HELD_OUT_SEED, 0, "judge"))
    print("judge: " + ", ".join(f"{name} {value:.4f}" for name, value in accuracy.items()) + ", 4000 renders")
    files = [file for file in weights_folder().rglob("*") if file.is_file() and not file.is_symlink()]
    print(f"weights: {sum(file.stat().st_size for file in files) / 1e6:.2f} MB in {len(files)} files")


if __name__ == "__main__":
    with torch.no_grad():
        main()
