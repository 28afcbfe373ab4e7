"""What each conditioning kind of latent diffusion makes of its condition, on toy images that only it explains.

    python bench/conditioning.py [--steps 300] [--batch 16] [--images 1024] [--seed 0]

Images 8 x 8 are a colour plus a square, each with a variance of 3/16; t lies in 0.9..1, so the picture itself tells
little. concat is told the square, crossattn and adm the colour, hybrid both. Prints the mean squared error of x0_hat
on held-out images with their own conditions and with another image's, and over kind none's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.tiny.train.conditioning import KINDS, ConditionedPart, draw_toys, held_out_errors, make_conditioned
from threestudio_rf.tiny.train.data.stores import HELD_OUT_SEED
from threestudio_rf.tiny.train.training import Schedule, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    schedule = Schedule(steps=options.steps, lr=1e-2, warmup=0.2, ema=0.9, log_every=options.steps + 1)
    print("| kind | told | parameters | right condition | another's | right / none's | seconds |\n" + "|---" * 7 + "|")
    blind = 0.0
    for kind, entries in KINDS.items():
        part = ConditionedPart(make_conditioned(kind, seed=options.seed), draw_toys(kind), batch=options.batch)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for _ in train(part, schedule, Path(folder), seed=options.seed, report=lambda _: None):
                pass
        seconds = time.perf_counter() - started
        right, wrong = held_out_errors(part, options.images, HELD_OUT_SEED)
        blind = blind or right
        told = " and ".join("square" if entry == "concat" else "colour" for entry in entries) or "nothing"
        size = sum(p.numel() for p in part.modules.parameters())
        print(f"| {kind} | {told} | {size} | {right:.4f} | {wrong:.4f} | {right / blind:.2f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
