"""The first stage with and without the patch discriminator: PSNR and sharpness on held-out renders.

    python bench/first_stage.py [--steps 300] [--batch 8] [--lr 2e-4] [--loss hinge] [--out docs/images/first_stage.png]

The shipped first stage is trained on for the same number of steps twice, from the same seed and on the same pictures:
once on reconstruction and KL alone, once with a discriminator that plays from the first step. Sharpness is the gradient
energy of a reconstruction over that of its original: 1 is as sharp, less is blurred. `--out` writes originals and the
three reconstructions beside each other.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.priors.folder.architecture import load_vae
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.train.data.stores import HELD_OUT_SEED, TRAIN_SEED
from threestudio_rf.tiny.train.discriminator import Adversary, PatchDiscriminator
from threestudio_rf.tiny.train.stage import AdversarialFirstStage, Terms, psnr, reconstructions, sharpness
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.world.views import Views, random_world

SHOWN = (0, 3, 4, 6, 8, 9, 11, 13)
TITLES = ("original", "shipped", "without", "with")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--per-shape", type=int, default=100, help="training views of every shape")
    parser.add_argument("--images", type=int, default=500, help="held-out renders")
    parser.add_argument("--loss", choices=("hinge", "vanilla"), default="hinge")
    parser.add_argument("--weight", type=float, default=0.5, help="times the adaptive weight")
    parser.add_argument("--width", type=int, default=32, help="width of the discriminator's first layer")
    parser.add_argument("--layers", type=int, default=2, help="its layers of stride 2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def trained(vae: Any, world: Views, adversary: Adversary | None, options: argparse.Namespace) -> float:
    """Train `vae` on, in place; seconds of a step."""
    part = AdversarialFirstStage(
        vae.train(), world, adversary=adversary, terms=Terms(absolute=0.5, squared=4.0), batch=options.batch
    )
    schedule = Schedule(steps=options.steps, lr=options.lr, warmup=0.05, betas=(0.5, 0.9), ema=0.99, log_every=25)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(part, schedule, Path(folder), seed=TRAIN_SEED):
            pass
    return (time.perf_counter() - started) / max(1, options.steps)


def measure(name: str, vae: Any, world: Views, options: argparse.Namespace, *, seconds: float = 0.0) -> list[Tensor]:
    """Print the row of one first stage; its originals and reconstructions of the first batch."""
    pairs = list(reconstructions(vae.eval(), world, options.images, HELD_OUT_SEED))
    decibel = torch.cat([psnr(output, image) for image, output in pairs])
    sharp = torch.cat([sharpness(output, image) for image, output in pairs])
    print(
        f"| {name} | {decibel.mean():.2f} | {decibel.quantile(0.1):.2f} | {sharp.mean():.4f} | "
        f"{sharp.quantile(0.1):.4f} | {seconds:.2f} |",
        flush=True,
    )
    return list(pairs[0])


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    world, held_out = random_world(options.per_shape, TRAIN_SEED), random_world(100, HELD_OUT_SEED)
    discriminator = PatchDiscriminator(width=options.width, layers=options.layers, seed=TRAIN_SEED)
    size = sum(p.numel() for p in discriminator.parameters())
    print(f"{options.steps} steps, batch {options.batch}, {options.loss}, discriminator of {size} parameters")
    adversary = Adversary(discriminator, options.loss, weight=options.weight)
    models, seconds = {name: load_vae(weights_folder() / "tiny-sd3/vae") for name in TITLES[1:]}, {}
    seconds["without"] = trained(models["without"], world, None, options)
    seconds["with"] = trained(models["with"], world, adversary, options)
    print("| first stage | PSNR, dB | worst tenth | sharpness | worst tenth | s / step |\n" + "|---" * 6 + "|")
    columns: list[Tensor] = []
    for name, vae in models.items():
        image, output = measure(name, vae, held_out, options, seconds=seconds.get(name, 0.0))
        columns = [*(columns or [image]), output]
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        rows = [(title, list(pictures[list(SHOWN)])) for title, pictures in zip(TITLES, columns, strict=True)]
        print(png(options.out, contact_sheet(rows, cell=128)))


if __name__ == "__main__":
    main()
