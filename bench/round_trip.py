"""How exactly DirectEdit returns a picture, and what it costs: up to the noise and down again under the same prompt.

    python bench/round_trip.py [--steps 8] [--images 4] [--priors all]

Held-out pictures of the tiny world, 64 pixels or the prior's own size. Prints for every embedded prior and the exact
one the largest difference of a latent, the root mean square of the latents, calls of the network per picture, and the
same of Euler's inversion, whose calls are the least that a way up and down can have. PriorError for an unknown prior.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.app.build.prior import bank_cache
from threestudio_rf.app.build.sampling import picture_size
from threestudio_rf.core.random import generator
from threestudio_rf.edit.direct import Direct
from threestudio_rf.edit.invert import Ode
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny
from threestudio_rf.tiny.world.exact import ExactPrior
from threestudio_rf.tiny.world.pairs import held_out_pairs
from threestudio_rf.trainer.edit import begin

SEED, EXACT = 1_000_003, "tiny_exact"


def round_trip(prior: Prior, settings: Direct | Ode, images: int) -> tuple[float, float, int]:
    """The largest difference of a latent, the root mean square of the latents, network calls per picture."""
    pairs = held_out_pairs(images, SEED, size=picture_size(prior, "cpu")[0])["colour"]
    editing = begin(prior, settings, source=pairs.source, target=pairs.target)
    x0 = prior.encode(pairs.before)
    *_, last = editing.reconstruct(x0, generator=generator(0, 0, "round trip"))
    return float((last.x - x0).abs().max()), float(x0.square().mean().sqrt()), editing.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--priors", nargs="+", default=[*EMBEDDED, EXACT])
    options = parser.parse_args()
    print(
        "| prior | largest difference | latents, rms | calls | Euler's: difference | calls |\n|---|---|---|---|---|---|"
    )
    for name in options.priors:
        prior = ExactPrior(cache=bank_cache("")) if name == EXACT else load_tiny(name)
        gap, size, calls = round_trip(prior, Direct(steps=options.steps), options.images)
        other, _, fewest = round_trip(prior, Ode("euler", steps=options.steps), options.images)
        print(f"| {name} | {gap:.1e} | {size:.2f} | {calls} | {other:.1e} | {fewest} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
