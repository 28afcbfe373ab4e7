"""How often the embedded prior's own samples are judged right: every prompt x 4 view words x seeds, 20 Euler steps.

    python bench/prior.py [--seeds 4] [--cfg 5] [--steps 20] [--shift 3] [--sheet docs/images/prior.png]

Prints the share of samples whose judged shape AND colour are the prompt's, by shape, colour and view word, and the
mean norm of a sample's latent over that of true latents (1 is right, more is over-saturated).
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

from threestudio_rf.core.guide import cfg, combine
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.solve import solve
from threestudio_rf.core.times import spacing
from threestudio_rf.export.media import png
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.tiny import load_tiny_sd3, weights_folder
from threestudio_rf.tiny.judge import load_judge
from threestudio_rf.tiny.world import COLOURS, SHAPES, VIEW_WORDS, prompt_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(2)
    prior, judge = load_tiny_sd3(), load_judge(weights_folder())
    index = torch.cartesian_prod(torch.arange(len(SHAPES)), torch.arange(len(COLOURS)), torch.arange(4))
    shapes, colours = list(SHAPES), list(COLOURS)
    texts = [f"{prompt_of(shapes[s], colours[c])}, {VIEW_WORDS[v]} view" for s, c, v in index.tolist()]
    conditions, empty = prior.embed(texts), prior.embed([""])
    times = spacing(options.steps, shift=options.shift)
    weights = cfg(options.cfg)
    started, right, pictures = time.perf_counter(), [], []
    for seed in range(options.seeds):
        for number, rows in enumerate(torch.arange(len(texts)).split(96)):
            predict = bind(prior, {"cond": conditions.select(rows), "uncond": empty})

            def field(x: torch.Tensor, t: torch.Tensor, predict=predict) -> torch.Tensor:
                return combine(predict(x, t, list(weights)), weights)

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
