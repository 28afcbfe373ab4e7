"""How far samplers are from the exact end of the probability flow at equal network calls, on embedded priors.

    python bench/solvers.py [--calls 20] [--cfg 4] [--priors tiny_sd tiny_sd3] [--reference 100] [--threads 2]

The reference is dpmpp_2m in `--reference` steps on its own grid. The error is the root mean square difference of the
latents over their standard deviation, averaged over four prompts, from the same noise. Every sampler has its own grid
(`spacing=auto`), euler also those of the others. No times are measured. Prints a Markdown table per prior.
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
from torch import Tensor

from threestudio_rf.app.api import load_prior
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.core.solve import Rule
from threestudio_rf.priors.base import Prior, bind

PROMPTS = ["a red ball", "a green chair", "a yellow cone", "a blue mushroom"]
CALLS = {"midpoint": 2, "heun": 2}
"""Network calls per step, of the others one; fireflow's first step has another."""
ROWS = ("euler", "dpmpp_2m", "fireflow", "midpoint", "heun")
GRIDS = {True: ("trailing", "karras"), False: ("even", "karras")}


@torch.no_grad()
def latents(prior: Prior, sampler: str, steps: int, scale: float, law: str = "auto") -> Tensor:
    """(4, C, h, w) at the end of a run."""
    found = prior.embed([*PROMPTS, ""])
    model = bind(prior, {"cond": found.select(list(range(len(PROMPTS)))), "uncond": found.select([len(PROMPTS)])})
    grid = prior.pipeline.times(steps, sampler=sampler, law=law)
    start = normal((len(PROMPTS), *prior.latent_shape), generator(0, 0, "bench/solvers"))
    *_, last = solve(grid.along(model.field(scale)), grid.start * start, grid.times, rule=Rule(sampler))
    return last


def steps_of(sampler: str, calls: int) -> int:
    """The most steps that cost at most so many calls."""
    return (calls - (sampler == "fireflow")) // CALLS.get(sampler, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--priors", nargs="+", default=["tiny_sd", "tiny_sd3"])
    parser.add_argument("--reference", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.priors:
        prior = load_prior(name, device="cpu", dtype="fp32")
        exact = latents(prior, "dpmpp_2m", options.reference, options.cfg)
        print(f"{name}, {options.calls} calls, cfg {options.cfg:g}\n\n| sampler | spacing | error |\n|---|---|---|")
        for sampler in ROWS:
            laws = ("auto", *GRIDS[prior.schedule.table is not None]) if sampler == "euler" else ("auto",)
            for law in laws:
                found = latents(prior, sampler, steps_of(sampler, options.calls), options.cfg, law)
                error = ((found - exact).square().mean((1, 2, 3)).sqrt() / exact.std()).mean()
                print(f"| {sampler} | {law} | {float(error):.4f} |", flush=True)
        print()


if __name__ == "__main__":
    main()
