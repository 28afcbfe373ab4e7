"""Our sampler against diffusers' own pipelines on the embedded priors: largest latent difference and wall time.

    python bench/sampler.py [--steps 20] [--cfg 5] [--pictures 4] [--pairs 7] [--threads 2]

For every prior folder in threestudio_rf/weights that a pipeline of diffusers can read: StableDiffusionPipeline with
DDIM (eta 0, and eta 1 with the same noise) and DDPM, StableDiffusion3Pipeline with Euler. Both start from the same
latents and text embeddings are made beforehand; float32, without decoding. The difference is the largest over all
elements, beside it the standard deviation of the latents; the time is the median over pairs run one after the other,
ours and theirs taking turns to be first. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.app.api import load_prior
from threestudio_rf.app.build.sampling import plan, run
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.tiny import weights_folder

PROMPT = "a red mushroom, front view"
STABLE = {
    "DDIM, eta 0": ("DDIMScheduler", {"sampler": "ddim"}),
    "DDIM, eta 1": ("DDIMScheduler", {"sampler": "ddim", "eta": 1.0}),
    "DDPM": ("DDPMScheduler", {"sampler": "ddpm"}),
}
FOLDERS = {"tiny-sd3": {"Euler, shift 3": ("", {"sampler": "euler"})}, "tiny-sd": STABLE, "tiny-sd-v": STABLE}
Work = Callable[[], Tensor]


def pipeline(folder: Path) -> Any:
    """diffusers' pipeline of an embedded prior."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    large = folder.name == "tiny-sd3"
    kind = diffusers.StableDiffusion3Pipeline if large else diffusers.StableDiffusionPipeline
    none = {"text_encoder_3": None, "tokenizer_3": None} if large else {}
    pipe = kind.from_pretrained(folder, local_files_only=True, **none)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embedded(pipe: Any, n: int, large: bool) -> dict[str, Tensor]:
    """The pipeline's own text embeddings of n equal prompts, made once."""
    if large:
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        found = pipe.encode_prompt(PROMPT, None, None, negative_prompt="", max_sequence_length=0)
    else:
        names = ("prompt_embeds", "negative_prompt_embeds")
        found = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt="")
    return {name: x.repeat(n, *[1] * (x.ndim - 1)) for name, x in zip(names, found, strict=True)}


def works(prior: Prior, pipe: Any, settings: SampleConfig, *, scheduler: str) -> tuple[Work, Work]:
    """One run of ours and one of theirs: latents (n, C, h, w) of the pictures 0 .. n - 1 of seed 0."""
    import diffusers

    numbers = range(settings.n)
    if scheduler:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    texts = embedded(pipe, settings.n, not scheduler)
    start = torch.cat([normal((1, *prior.latent_shape), generator(0, i, "sample")) for i in numbers])
    extra: dict[str, Any] = {"eta": settings.eta} if scheduler else {"max_sequence_length": 0}
    made = plan(prior, PROMPT, settings)

    def ours() -> Tensor:
        *_, last = run(made, numbers)
        return last.x

    def theirs() -> Tensor:
        return pipe(
            **texts,
            **extra,
            num_inference_steps=settings.steps,
            guidance_scale=settings.cfg,
            generator=[generator(0, i, "fresh") for i in numbers],
            latents=start,
            output_type="latent",
        ).images

    return ours, theirs


def timed(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(ours: Work, theirs: Work, pairs: int) -> tuple[float, float, float, float, float]:
    """(largest difference, standard deviation, our seconds, their seconds, median ratio)."""
    one, other = ours(), theirs()
    seconds = []
    for number in range(pairs):
        both = {work: timed(work) for work in ((ours, theirs) if number % 2 else (theirs, ours))}
        seconds.append((both[ours], both[theirs]))
    mine, yours = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(a / b for a, b in seconds)
    return float((one - other).abs().max()), float(other.std()), mine, yours, ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.steps} steps, cfg {options.cfg:g}, {options.pictures} pictures, {options.threads} threads, float32"
    )
    print("| prior | sampler | largest difference | std of latents | ours s | diffusers s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, rows in FOLDERS.items():
        folder = weights_folder() / name
        if not (folder / "model_index.json").is_file():
            print(f"| {name} | not in the weights folder | | | | | |")
            continue
        prior, pipe = load_prior(name.replace("-", "_"), device="cpu", dtype="fp32"), pipeline(folder)
        for title, (scheduler, given) in rows.items():
            settings = SampleConfig(n=options.pictures, steps=options.steps, cfg=options.cfg, **given)
            pair = works(prior, pipe, settings, scheduler=scheduler)
            gap, spread, mine, yours, ratio = compare(*pair, options.pairs)
            row = f"{gap:.1e} | {spread:.3f} | {mine:.3f} | {yours:.3f} | {ratio:.3f}"
            print(f"| {name} | {title} | {row} |", flush=True)


if __name__ == "__main__":
    main()
