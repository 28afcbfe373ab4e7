"""2D RFDS with a flow's right label, 1000 t, against the mirrored one, 1000 (1 - t), that the reference passes.

    python bench/instaflow_label.py [--prior tiny_instaflow] [--scales 2 7] [--steps 300] [--lr 0.03] [--sheet FILE]

Latents of sixteen prompts x seeds, "front view", are distilled at once. Both labels start from the same latents
and draw the same noise and times, uniform in 0.02..0.98. Rows: true renders through the first stage (the bound), the
prior's own sampler (20 Euler steps), and both labels at each guidance scale. Columns: share of pictures whose judged
shape AND colour are the prompt's; mean CIE76 colour error of what stands out from the background; pictures in which
nothing does; mean deviation along the border, 0 for the flat backgrounds of the truth; norm of x0 over that of the
true renders.
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
from prior import PRESETS
from torch import Tensor

from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.core.times import draw, spacing
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.priors.base import Condition, Prior, bind
from threestudio_rf.priors.tiny import load_tiny, weights_folder
from threestudio_rf.scenes.camera import orbit, random_views
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.tiny.world.figures.colour import albedos
from threestudio_rf.tiny.world.figures.score2d import standing_out
from threestudio_rf.tiny.world.figures.strict import border
from threestudio_rf.tiny.world.judge import Judge, load_judge
from threestudio_rf.tiny.world.truth import subject
from threestudio_rf.tiny.world.views import COLOURS, IMAGE_SIZE, SHAPES, View, compose, random_backgrounds, render

PROMPTS = (
    "a red mushroom",
    "a purple donut",
    "an orange snowman",
    "a blue ball",
    "a green cone",
    "a yellow cylinder",
    "a white mushroom",
    "a pink snowman",
    "a blue cube",
    "a yellow table",
    "a brown chair",
    "a white house",
    "a green arrow",
    "an orange star",
    "a cyan chair",
    "a red house",
)
"""Of the twelve shapes that every prior knows, one at least each."""
SUBJECTS = [(found.solid.name, found.colours[0]) for prompt in PROMPTS if (found := subject(prompt))]
FRONT = orbit(1, height=IMAGE_SIZE, width=IMAGE_SIZE)
WINDOW = (0.02, 0.98)


class Mirrored:
    """A flow that hears the label of 1 - t, for priors that have no mirror_time."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.prior.predict(x_t, 1 - t, condition)


def load_both(name: str) -> tuple[Prior, Prior | Mirrored]:
    """The prior with the right label and the one with the mirrored."""
    right = load_tiny(name)
    if right.kind != "flow":
        raise ValueError(f"got {name} of kind {right.kind}, expected a flow: tables have no mirror")
    if name != "tiny_instaflow":
        return right, Mirrored(right)
    mirrored, t = load_tiny(name, mirror_time=True), torch.tensor([0.0, 0.25, 1.0])
    print(f"labels at t = {t.tolist()}: {right.label(t).tolist()}, mirrored {mirrored.label(t).tolist()}")
    return right, mirrored


def distilled(prior: Prior, predict: Model, options: argparse.Namespace, scale: float) -> Tensor:
    """Latents (N, C, h, w) after the steps of Adam; `prior` says shape and path, `predict` what the network says."""
    n = options.seeds * len(PROMPTS)
    scene = ImageScene((n, *prior.latent_shape), "latent", generator=generator(0, 0, "instaflow_label/start"))
    optimiser = torch.optim.Adam(scene.parameters(), lr=options.lr, betas=(0.9, 0.99))
    for step in range(options.steps):
        optimiser.zero_grad(set_to_none=True)
        distill(
            scene.render(FRONT).rgb,
            predict,
            draw(n, generator(0, step, "instaflow_label/t"), t_min=WINDOW[0], t_max=WINDOW[1]),
            method=Method(scale=scale),
            generator=generator(0, step, "instaflow_label/noise"),
        ).loss.backward()
        optimiser.step()
    return scene.values.detach()


@torch.no_grad()
def sampled(prior: Prior, predict: Model, n: int) -> Tensor:
    """Latents (n, C, h, w) of the prior's own sampler, with the settings of bench/prior.py."""
    scale, shift = PRESETS[prior.name]
    field = predict.field(scale)
    start = normal((n, *prior.latent_shape), generator(0, 0, "instaflow_label/sampler"))
    *_, latents = solve(field, start, spacing(20, shift=shift))
    return latents


@torch.no_grad()
def true_latents(prior: Prior, seeds: int) -> Tensor:
    """Encoded true front views (N, C, h, w), one random camera and background each."""
    pictures = []
    for seed in range(seeds):
        for number, (shape, colour) in enumerate(SUBJECTS):
            draws = generator(seed, number, "instaflow_label/truth")
            view = render(SHAPES[shape], random_views(1, draws, azimuth=(-45, 45), height=IMAGE_SIZE, width=IMAGE_SIZE))
            named = torch.tensor([COLOURS[colour]])
            pictures.append(compose(view, named, random_backgrounds(named, draws)))
    return prior.encode(torch.cat(pictures))


@torch.no_grad()
def figures(latents: Tensor, prior: Prior, judge: Judge, norm: float) -> tuple[list[float], Tensor]:
    """Accuracy, colour error, number of empty pictures, border, relative norm; and the pictures."""
    images = prior.decode(latents)
    verdict, masks, right, errors = judge(images), standing_out(images), [], []
    for i, image in enumerate(images):
        shape, colour = SUBJECTS[i % len(SUBJECTS)]
        judged = verdict.shape[i].argmax() == list(SHAPES).index(shape)
        right.append(float(judged and verdict.colour[i].argmax() == list(COLOURS).index(colour)))
        truth: View = render(SHAPES[shape], FRONT)
        errors.append(albedos(image[None], masks[i : i + 1], truth, torch.tensor(COLOURS[colour])).error)
    known = [error for error in errors if error is not None]
    mean = sum(known) / len(known) if known else float("nan")
    relative = latents.flatten(1).norm(dim=1).mean().item() / norm
    rough = border(images).std(dim=2).mean().item()
    return [sum(right) / len(right), mean, len(errors) - len(known), rough, relative], images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", choices=("tiny_instaflow", "tiny_sd3"), default="tiny_instaflow")
    parser.add_argument("--scales", type=float, nargs="+", default=[2.0, 7.0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    right, mirrored = load_both(options.prior)
    judge, started, rows = load_judge(weights_folder()), time.perf_counter(), []
    texts = [f"{prompt}, front view" for prompt in PROMPTS] * options.seeds
    conditions = {"cond": right.embed(texts), "uncond": right.embed([""])}
    truth = true_latents(right, options.seeds)
    norm = truth.flatten(1).norm(dim=1).mean().item()
    print("|  | judged accuracy | colour error | empty | border | norm of x0 |\n|---|---|---|---|---|---|")

    def report(title: str, latents: Tensor) -> None:
        (accuracy, error, empty, rough, size), images = figures(latents, right, judge, norm)
        rows.append((title, list(images[: len(PROMPTS)])))
        print(f"| {title} | {accuracy:.3f} | {error:.1f} | {empty:.0f} | {rough:.3f} | {size:.2f} |", flush=True)

    report("true renders", truth)
    report(f"sampler, cfg {PRESETS[right.name][0]:g}", sampled(right, bind(right, conditions), len(texts)))
    for scale in options.scales:
        for title, prior in (("1000 t", right), ("1000 (1 - t)", mirrored)):
            latents = distilled(right, bind(prior, conditions), options, scale)  # type: ignore[arg-type]
            report(f"RFDS, scale {scale:g}, label {title}", latents)
    print(f"{len(texts)} pictures each, {options.steps} steps, {time.perf_counter() - started:.0f} seconds")
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        png(options.sheet, contact_sheet(rows, titles=[shape for shape, _ in SUBJECTS], cell=64))


if __name__ == "__main__":
    main()
