"""Training of the embedded networks, one command per part: `python launch.py task=train_tiny train_tiny.part=vae`.

The parts build on each other: vae (first stage); on its latents instaflow (flow, UNet) and sd3 (flow, MMDiT), then sd
(eps), sd_v (v) and reflow from instaflow's weights; pixel (x0, no first stage) and judge need no other part. A folder
without a first stage takes the shipped one.
Everything is made from seeds, and the held-out seeds never overlap the training seeds. A run that stops goes on where
it stopped when the same command is given again. `ship` copies what was reached into the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder import architecture
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.train.crew import Crew, silent
from threestudio_rf.tiny.train.data.latents import CaptionedLatents
from threestudio_rf.tiny.train.data.stores import (
    HELD_OUT_SEED,
    JUDGE_SEED,
    TRAIN_SEED,
    load_failures,
    load_latents,
    load_vae,
    load_world,
)
from threestudio_rf.tiny.train.denoise import FlowPart, Objective
from threestudio_rf.tiny.train.judging import JudgeDistance, JudgePart, judge_accuracy, refused_share
from threestudio_rf.tiny.train.pixel import train_pixel
from threestudio_rf.tiny.train.stage import (
    AdversarialFirstStage,
    FirstStage,
    Sharpening,
    latent_statistics,
    pyramid_start,
    reconstruction_psnr,
)
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.train.unet import beginning, train_unet
from threestudio_rf.tiny.world.judge import Judge, load_judge
from threestudio_rf.tiny.world.views import IMAGE_SIZE, VOCABULARY

HELD_OUT_VIEWS = 100
"""Views of every shape that figures are taken from; a training on fewer takes as few."""
VAE_CHANNELS = (32, 48, 64, 96)
TEXT = ({"width": 64, "heads": 4, "projection": 64}, {"width": 96, "heads": 4, "projection": 96})

Report = Callable[[str], None]


def train_vae(
    folder: Path,
    schedule: Schedule,
    *,
    per_shape: int,
    batch: int,
    report: Report,
    device: torch.device | str = "cpu",
    sharpening: Sharpening | None = None,
) -> None:
    """Train the first stage and write `<folder>/vae-final` with its scale and shift, and its figures as vae.json.

    With `sharpening` a discriminator takes part, and AdamW has Esser et al.'s betas (0.5, 0.9); its perceptual term
    reads the shipped judge.
    """
    world = load_world(folder, per_shape, TRAIN_SEED, device=device)
    vae: Any = architecture.make_vae(VAE_CHANNELS, seed=TRAIN_SEED)
    pyramid_start(vae, vae.config.latent_channels, TRAIN_SEED)
    vae.to(device)
    part: FirstStage | AdversarialFirstStage = FirstStage(vae, world, batch=batch)
    if sharpening is not None:
        schedule = replace(schedule, betas=(0.5, 0.9))
        distance = JudgeDistance(load_judge(weights_folder()).to(device)) if sharpening.perceptual else None
        part = sharpening.part(vae, world, batch=batch, seed=TRAIN_SEED, distance=distance)
    for _ in train(part, schedule, folder, seed=TRAIN_SEED, report=report):
        pass
    vae.eval()
    shift, scale = latent_statistics(vae, world, TRAIN_SEED, n=min(2048, 64 * per_shape))
    vae.register_to_config(scaling_factor=round(scale, 4), shift_factor=round(shift, 4))
    vae.save_pretrained(folder / "vae-final", safe_serialization=True)
    views = min(HELD_OUT_VIEWS, per_shape)
    psnr = reconstruction_psnr(vae, load_world(folder, views, HELD_OUT_SEED), 10 * views, HELD_OUT_SEED)
    low = psnr.quantile(0.1).item()
    _figures(folder, "vae", {"psnr_mean_db": psnr.mean().item(), "psnr_tenth_percentile_db": low}, report)


def fresh_sd3() -> tuple[Any, list[Any], list[Any]]:
    """(transformer, text encoders, tokenizers) of `tiny-sd3` before any training, from the training seed."""
    tokenizers = [architecture.make_tokenizer([word for word in VOCABULARY if word.isalpha()]) for _ in TEXT]
    encoders = [
        architecture.make_text_encoder(tokenizer, layers=2, seed=TRAIN_SEED + 1 + i, **sizes)
        for i, (tokenizer, sizes) in enumerate(zip(tokenizers, TEXT, strict=True))
    ]
    transformer = architecture.make_transformer(encoders, qk_norm="rms_norm", sample_size=16, seed=TRAIN_SEED)
    architecture.zero_modulation(transformer)
    return transformer, encoders, tokenizers


def train_sd3(
    folder: Path,
    schedule: Schedule,
    *,
    per_shape: int,
    batch: int,
    report: Report,
    device: torch.device | str = "cpu",
    copies: int = 2,
    start: Path | None = None,
) -> None:
    """Train transformer and text encoders on the latents of `<folder>/vae-final` and write `<folder>/tiny-sd3`.

    With `start`, the folder of a trained prior, weights begin there; the schedule begins anew.
    """
    vae = load_vae(folder, device)
    data = load_latents(folder, vae, per_shape, copies, device=device)
    transformer, encoders, tokenizers = fresh_sd3()
    if start:
        modules = (transformer, *encoders)
        for module, name in zip(modules, ("transformer", "text_encoder", "text_encoder_2"), strict=True):
            architecture.copy_weights(module, start / name)
    for module in (transformer, *encoders):
        module.to(device)
    part = FlowPart(transformer, encoders, CaptionedLatents(data, tokenizers, device=device), batch=batch)
    for _ in train(part, schedule, folder, seed=TRAIN_SEED, report=report):
        pass
    architecture.save_sd3(
        folder / "tiny-sd3",
        vae=vae,
        transformer=transformer,
        text_encoders=encoders,
        tokenizers=tokenizers,
        dtype=torch.float16,
    )


def train_sd(
    folder: Path,
    schedule: Schedule,
    *,
    part: str,
    per_shape: int,
    batch: int,
    report: Report,
    device: torch.device | str = "cpu",
    copies: int = 2,
    objective: Objective | None = None,
    start: Path | None = None,
) -> None:
    """Train one of the UNets on the latents of `<folder>/vae-final` and write its folder."""
    vae = load_vae(folder, device)
    data = load_latents(folder, vae, per_shape, copies, device=device)
    options: dict[str, Any] = {"objective": objective, "start": start}
    train_unet(folder, schedule, part=part, vae=vae, data=data, batch=batch, report=report, **options)


def train_judge(
    folder: Path,
    schedule: Schedule,
    *,
    per_shape: int,
    batch: int,
    report: Report,
    device: torch.device | str = "cpu",
) -> None:
    """Train the judge on views of its own seed and write `<folder>/judge.safetensors`, and its figures as JSON."""
    from safetensors.torch import save_file

    with architecture.seeded(JUDGE_SEED):
        judge = Judge()
    world = load_world(folder, per_shape, JUDGE_SEED, size=IMAGE_SIZE, device=device)
    failures = load_failures(folder, per_shape, JUDGE_SEED)
    part = JudgePart(judge.to(device), world, failures=failures, batch=batch)
    for _ in train(part, schedule, folder, seed=JUDGE_SEED, report=report):
        pass
    judge.eval()
    save_file({name: value.half().cpu() for name, value in judge.state_dict().items()}, folder / "judge.safetensors")
    views = min(HELD_OUT_VIEWS, per_shape)
    held_out = load_world(folder, views, HELD_OUT_SEED, size=IMAGE_SIZE)
    figures = judge_accuracy(judge, held_out, 40 * views, generator(HELD_OUT_SEED, 0, "judge"), batch=views)
    figures["none"] = refused_share(judge, load_failures(folder, max(1, per_shape // 4), HELD_OUT_SEED))
    _figures(folder, "judge", figures, report)


def _figures(folder: Path, part: str, figures: dict[str, float], report: Report) -> None:
    (folder / f"{part}.json").write_text(json.dumps(figures, indent=2) + "\n")
    report(f"{part}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


@dataclass(frozen=True)
class Row:
    """One part: its training, schedule and sizes, and the options it understands beside them."""

    run: Callable[..., None]
    schedule: Schedule
    sizes: dict[str, int]
    options: tuple[str, ...] = ()


def _unet(part: str, schedule: Schedule) -> Row:
    return Row(partial(train_sd, part=part), schedule, {"per_shape": 1500, "batch": 64}, ("objective", "start"))


PARTS: dict[str, Row] = {
    "vae": Row(train_vae, Schedule(steps=3600, lr=6e-4, warmup=0.01), {"per_shape": 1500, "batch": 8}, ("sharpening",)),
    "instaflow": _unet("instaflow", Schedule(steps=8000, lr=1.2e-3)),
    "sd3": Row(train_sd3, Schedule(steps=7000, lr=1e-3), {"per_shape": 1500, "batch": 64}, ("start",)),
    "sd": _unet("sd", Schedule(steps=3000, lr=7e-4)),
    "sd_v": _unet("sd_v", Schedule(steps=3000, lr=7e-4)),
    "reflow": _unet("reflow", Schedule(steps=3000, lr=5e-4)),
    "pixel": Row(train_pixel, Schedule(steps=8000, lr=1e-3), {"per_shape": 1500, "batch": 32}),
    "judge": Row(train_judge, Schedule(steps=3000, lr=2e-3), {"per_shape": 1000, "batch": 64}),
}


def run_part(
    part: str,
    folder: Path,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    per_shape: int | None = None,
    start: Path | None = None,
    objective: Objective | None = None,
    sharpening: Sharpening | None = None,
    report: Report = print,
    device: torch.device | str = "cpu",
    crew: Crew | None = None,
) -> None:
    """Train one of `PARTS` on `device`, for at most `seconds`; None keeps the part's own. `start` is the folder of a
    trained prior whose weights the part begins with, `sharpening` gives the first stage a discriminator, `crew` are the
    processes that share every batch. Raises ValueError for an unknown part, an option that the part does not have, or
    weights to begin with that are not there."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    row = PARTS[part]
    changes: dict[str, Any] = {"steps": steps, "lr": lr, "seconds": seconds, "crew": crew}
    schedule = replace(row.schedule, **{name: value for name, value in changes.items() if value is not None})
    given = {"batch": batch, "per_shape": per_shape}
    sizes = row.sizes | {name: value for name, value in given.items() if value is not None}
    if crew is not None:
        sizes["batch"] = crew.share(sizes["batch"])
    chosen = {"start": start, "objective": objective, "sharpening": sharpening}
    options = {name: value for name, value in chosen.items() if value is not None}
    for name in options.keys() - row.options:
        able = [other for other, its in PARTS.items() if name in its.options]
        raise ValueError(f"{name}: got one for the part {part!r}, expected one of {', '.join(able)}")
    beginning(folder, part, start)  # before pictures are drawn
    row.run(folder, schedule, report=report, device=device, **sizes, **options)


@dataclass(frozen=True)
class Shared:
    """`run_part` by several processes: what each of them is told."""

    part: str
    folder: Path
    options: dict[str, Any]

    def __call__(self, crew: Crew) -> None:
        """The same training in another process, which says nothing."""
        run_part(self.part, self.folder, **self.options, report=silent, crew=crew)
