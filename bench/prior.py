"""How sharply a prior of the tiny world sees it: the strict figure of its own samples, and how many are recognised.

    python bench/prior.py [--prior tiny_instaflow] [--folder FOLDER] [--samples 24] [--views four|octants] [--cfg 5]
                          [--interval 0 1] [--steps 20] [--shift 3] [--shapes all|twelve] [--sheet sheet.png] [--step]

Every shape, colours and view words in turn. Flows take Euler steps under `--shift`, noise models DDIM steps with eta 0
on Stable Diffusion's own times, where there is no shift. `--cfg` and `--shift` are those of `PRESETS` unless given, and
guidance acts at all times, or at those of `--interval`.
Prints for every shape the nearest-view IoU of the samples, its bound (true views, of cameras that are not in the bank,
through the prior's first stage), the share of samples whose judged shape AND colour are the prompt's, and for shapes
with a front, asked by octant, the share whose nearest true view is of that octant (chance: 0.125). `--step` times what
the prior costs a step of guidance instead: two pictures encoded, both prompts answered, the way back to the pictures.
`tiny_pixel` is what `train_tiny.part=pixel` leaves in a folder.
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
from torch import Tensor

from threestudio_rf.app.build.prior import bank_cache
from threestudio_rf.core.grid import grid_of
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.export.media import png
from threestudio_rf.priors.adapters.load import load_adapted
from threestudio_rf.priors.adapters.prx_pixel import ADAPTER as PIXELS
from threestudio_rf.priors.base import Prior, bind
from threestudio_rf.priors.facts import DEFAULT
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3
from threestudio_rf.priors.tiny import EMBEDDED, known_words, load_tiny, weights_folder
from threestudio_rf.priors.views import HEIGHTS, OCTANT_WORDS, octant_index
from threestudio_rf.scenes.camera import random_views
from threestudio_rf.tiny.world.exact import ExactPrior
from threestudio_rf.tiny.world.figures.strict import nearest_view_iou, seen_from
from threestudio_rf.tiny.world.judge import Judge, load_judge
from threestudio_rf.tiny.world.shapes import SHAPES, TWELVE
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, compose, palette, prompt_of, random_backgrounds, render

PIXEL = "tiny_pixel"
PRESETS = {"tiny_sd3": (3.5, 3.0), "tiny_sd": (4.0, 1.0), "tiny_sd_v": (4.0, 1.0), "tiny_instaflow": (3.0, 1.0)}
PRESETS |= {"tiny_exact": (1.0, 1.0), PIXEL: (3.0, 1.5)}
"""Guidance scale and shift."""
HELD_OUT = 1_000_000
CACHE = bank_cache("")


def times_of(prior: Prior, steps: int, shift: float) -> Tensor:
    """(steps + 1,) falling times; ValueError for a shift on a table."""
    table = prior.schedule.table
    if table is not None and shift != 1:
        raise ValueError(f"got shift {shift} for {prior.name}, expected 1: its times are those of a table")
    return grid_of(prior.schedule, steps, shift=shift).times


def prior_of(name: str, folder: Path | None) -> Prior:
    """An embedded prior, the exact one, or one that a training has left in a folder."""
    if name == PIXEL:
        return load_adapted(PIXELS, folder or Path(PIXEL.replace("_", "-")))
    if folder is not None:
        if name == "tiny_sd3":
            return load_sd3(folder, device="cpu", dtype=torch.float32, cache=None, name=name, licence="-")
        kind = "flow" if name == "tiny_instaflow" else "auto"
        return load_sd(folder, device="cpu", dtype=torch.float32, kind=kind, cache=None, name=name, licence="-")
    return ExactPrior(cache=CACHE) if name == "tiny_exact" else load_tiny(name)


def bound(prior: Prior, shape: str, size: int, n: int) -> float:
    """The strict figure of true held-out views through the prior's first stage."""
    solid, draw = SHAPES[shape], generator(HELD_OUT, 0, "bound")
    named = palette()[torch.arange(n) % len(COLOURS)]
    view = render(solid, random_views(n, draw, height=size, width=size))
    image = compose(view, solid.palette(named), random_backgrounds(named, draw))
    return float(nearest_view_iou(prior.decode(prior.encode(image)), solid, cache=CACHE).mean())


def samples(prior: Prior, prompts: list[str], options: argparse.Namespace, *, number: int) -> Tensor:
    """Pictures (N, 3, H, W) of the prompts."""
    scale, shift = options.cfg, options.shift
    predict = bind(prior, {"cond": prior.embed(prompts), "uncond": prior.embed([""])})
    field = predict.field(scale, interval=tuple(options.interval))
    start = normal((len(prompts), *prior.latent_shape), generator(0, number, "bench/prior"))
    start = prior.pipeline.times(options.steps, sampler=prior.pipeline.sampler).start * start
    times = times_of(prior, options.steps, shift)
    *_, latents = solve(field, start, times)
    return prior.decode(latents)


@torch.enable_grad()
def step_seconds(prior: Prior, *, repeats: int = 31) -> float:
    """Median of the processor time of what a prior does in a step of guidance."""
    prompts = ["a red ball, front view", "a blue chair, side view"]
    model = bind(prior, {"cond": prior.embed(prompts), "uncond": prior.embed([""])})
    size, found = prior.decode(torch.zeros(1, *prior.latent_shape)).shape[-1], []
    for _ in range(repeats):
        picture = torch.rand(2, 3, size, size, requires_grad=True)
        before = time.process_time()
        latents = prior.encode(picture)
        pull = model(latents.detach(), torch.full((2,), 0.5), ["cond", "uncond"])["cond"]
        latents.backward(pull)
        found.append(time.process_time() - before)
    return sorted(found)[repeats // 2]


def right(judge: Judge, image: Tensor, shape: str, colours: list[int]) -> Tensor:
    """Which pictures (N,) the judge names rightly; NaN for a shape it does not know."""
    verdict, number = judge(image), list(SHAPES).index(shape)
    if number >= verdict.shape.shape[1]:
        return torch.full((len(image),), torch.nan)
    found = (verdict.shape.argmax(-1) == number) & (verdict.colour.argmax(-1) == torch.tensor(colours))
    return found.float()


def octants_right(image: Tensor, shape: str, colours: list[int], words: list[str]) -> float:
    """The share of pictures (N, 3, H, W) whose nearest true view stands in the octant of their word."""
    solid, named = SHAPES[shape], palette()[torch.tensor(colours)]
    found = []
    for one, colour in zip(image.split(1), solid.palette(named), strict=True):
        azimuth, elevation = seen_from(one, solid, colour, cache=CACHE)
        found.append(octant_index(azimuth, elevation) // len(HEIGHTS))
    asked = torch.tensor([OCTANT_WORDS.index(word) // len(HEIGHTS) for word in words])
    return (torch.cat(found) == asked).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=(*EMBEDDED, "tiny_exact", PIXEL), default=DEFAULT)
    parser.add_argument("--folder", type=Path, help="weights of that kind instead of the shipped ones")
    parser.add_argument("--samples", type=int, default=24, help="of every shape")
    parser.add_argument("--views", choices=("four", "octants"))
    parser.add_argument("--shapes", choices=("all", "twelve"))
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    if options.step:
        torch.set_num_threads(1)
        print(f"{options.prior}: {1000 * step_seconds(prior_of(options.prior, options.folder)):.1f} ms of one core")
        return
    torch.set_num_threads(2)
    prior, judge, started = prior_of(options.prior, options.folder), load_judge(weights_folder()), time.perf_counter()
    folder = options.folder or weights_folder() / options.prior.replace("_", "-")
    own = set(SHAPES) if options.prior == "tiny_exact" else set(known_words(folder))
    octants = options.prior == "tiny_exact" or set(HEIGHTS) <= own
    options.cfg, options.shift = (
        given if given is not None else default
        for given, default in zip((options.cfg, options.shift), PRESETS[options.prior], strict=True)
    )
    words = OCTANT_WORDS if options.views == "octants" or (options.views is None and octants) else VIEW_WORDS
    shapes = [name for name in (TWELVE if options.shapes == "twelve" else SHAPES) if name in own]
    rows, sheet, size = [], [], None
    for number, shape in enumerate(shapes):
        colours = [i % len(COLOURS) for i in range(options.samples)]
        names = [words[(7 * i + number) % len(words)] for i in range(options.samples)]
        prompts = [f"{prompt_of(shape, list(COLOURS)[c])}, {w} view" for c, w in zip(colours, names, strict=True)]
        image = samples(prior, prompts, options, number=number)
        size = image.shape[-1]
        found = nearest_view_iou(image, SHAPES[shape], cache=CACHE).mean()
        rows.append(
            (float(found), bound(prior, shape, size, options.samples), right(judge, image, shape, colours).mean())
        )
        sides = octants_right(image, shape, colours, names) if words is OCTANT_WORDS and SHAPES[shape].front else None
        told = "" if sides is None else f"  octant {sides:.2f}"
        print(
            f"  {shape:<9} IoU {rows[-1][0]:.3f}  bound {rows[-1][1]:.3f}  recognised {rows[-1][2]:.3f}{told}",
            flush=True,
        )
        sheet.append(image[:10].permute(1, 2, 0, 3).flatten(2))
    table = torch.tensor(rows)
    print(f"{options.prior}, scale {options.cfg:g}, {options.samples} samples of {len(shapes)} shapes: ", end="")
    print(f"nearest-view IoU mean {table[:, 0].mean():.3f} worst {table[:, 0].min():.3f}, ", end="")
    print(f"bound {table[:, 1].mean():.3f} / {table[:, 1].min():.3f}, largest gap ", end="")
    print(f"{(table[:, 1] - table[:, 0]).max():.3f}, recognised {table[:, 2].nanmean():.3f}, ", end="")
    print(f"{time.perf_counter() - started:.0f} s")
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        png(options.sheet, torch.cat(sheet, dim=1))


if __name__ == "__main__":
    with torch.no_grad():
        main()
