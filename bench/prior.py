"""How often an embedded prior's own samples are judged right: every prompt x 4 view words x seeds, 20 steps.

    python bench/prior.py [--prior tiny_sd3] [--seeds 4] [--cfg 5] [--steps 20] [--shift 3] [--sheet sheet.png]

Flows take Euler steps under `--shift`, noise models DDIM steps with eta 0 on Stable Diffusion's own times, where there
is no shift. `--cfg` and `--shift` are those of `PRESETS` unless given. Prints the share of samples whose judged shape
AND colour are the prompt's, by shape, colour and view word.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.core.level import DiscreteVP
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import guided
from threestudio_rf.core.solve import solve
from threestudio_rf.core.times import ddim_times, spacing
from threestudio_rf.export.media import png
from threestudio_rf.priors.base import Prior, bind
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny, weights_folder
from threestudio_rf.tiny.judge import load_judge
from threestudio_rf.tiny.world import COLOURS, SHAPES, VIEW_WORDS, prompt_of

PRESETS = {"tiny_sd3": (3.5, 3.0), "tiny_sd": (4.0, 1.0), "tiny_sd_v": (4.0, 1.0), "tiny_instaflow": (1.5, 1.0)}
"""Guidance scale and shift."""


def times_of(prior: Prior, steps: int, shift: float) -> torch.Tensor:
    """(steps + 1,) falling times; ValueError for a shift on a table."""
    if not isinstance(prior.schedule, DiscreteVP):
        return spacing(steps, shift=shift)
    if shift != 1:
        raise ValueError(f"got shift {shift} for {prior.name}, expected 1: its times are those of a table")
    return ddim_times(steps, len(prior.schedule), offset=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=EMBEDDED, default="tiny_sd3")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    prior, judge = load_tiny(options.prior), load_judge(weights_folder())
    given = zip((options.cfg, options.shift), PRESETS[options.prior], strict=True)
    scale, shift = (default if value is None else value for value, default in given)
    index = torch.cartesian_prod(torch.arange(len(SHAPES)), torch.arange(len(COLOURS)), torch.arange(4))
    shapes, colours = list(SHAPES), list(COLOURS)
    texts = [f"{prompt_of(shapes[s], colours[c])}, {VIEW_WORDS[v]} view" for s, c, v in index.tolist()]
    conditions, empty = prior.embed(texts), prior.embed([""])
    times = times_of(prior, options.steps, shift)
    started, right, pictures = time.perf_counter(), [], []
    for seed in range(options.seeds):
        for number, rows in enumerate(torch.arange(len(texts)).split(96)):
            predict = bind(prior, {"cond": conditions.select(rows), "uncond": empty})
            field = guided(predict, scale, schedule=prior.schedule, kind=prior.kind)
            start = normal((len(rows), *prior.latent_shape), generator(seed, number, "bench/prior"))
            *_, latents = solve(field, start, times, schedule=prior.schedule, kind=prior.kind)
            image = prior.decode(latents)
            verdict = judge(image)
            hits = torch.stack(
                (verdict.shape.argmax(-1) == index[rows, 0], verdict.colour.argmax(-1) == index[rows, 1])
            )
            right.append(torch.cat((index[rows], hits.T, torch.full((len(rows), 1), seed)), dim=1))
            if seed == 0:
                pictures.append(image)
    table = torch.cat(right)
    both = (table[:, 3] & table[:, 4]).float()
    print(f"samples {len(both)}  both {both.mean():.4f}  shape {table[:, 3].float().mean():.4f}  ", end="")
    print(f"colour {table[:, 4].float().mean():.4f}  seconds {time.perf_counter() - started:.0f}")
    for title, column, names in (("shape", 0, shapes), ("colour", 1, colours), ("view", 2, VIEW_WORDS)):
        shares = [f"{name} {both[table[:, column] == i].mean():.3f}" for i, name in enumerate(names)]
        print(f"  by {title}: " + ", ".join(shares))
    if options.sheet:
        grid = torch.cat(pictures).reshape(len(shapes), len(colours), 4, 3, 64, 64)
        picked = grid[:, torch.arange(10), torch.arange(10) % 4]
        sheet = picked.permute(2, 0, 3, 1, 4).reshape(3, len(shapes) * 64, 10 * 64)
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        png(options.sheet, sheet)


if __name__ == "__main__":
    with torch.no_grad():
        main()
