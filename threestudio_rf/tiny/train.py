"""Training of the embedded networks, one command per part: `python launch.py task=train_tiny train_tiny.part=vae`.

The parts build on each other: vae (first stage), sd3 (rectified flow on its latents); judge needs no other part.
Everything is made from seeds, and the held-out seeds never overlap the training seeds. A run that stops goes on where
it stopped when the same command is given again. `ship` copies what was reached into the package.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.priors import architecture
from threestudio_rf.tiny.flow import FlowPart, Latents, encode_world
from threestudio_rf.tiny.judge import Judge, JudgePart, judge_accuracy
from threestudio_rf.tiny.stage import FirstStage, latent_statistics, pyramid_start, reconstruction_psnr
from threestudio_rf.tiny.training import Schedule, train
from threestudio_rf.tiny.world import VOCABULARY, Views, random_world

TRAIN_SEED, HELD_OUT_SEED, JUDGE_SEED = 0, 1_000_000, 2_000_000
VAE_CHANNELS = (32, 48, 64, 96)
TEXT = ({"width": 64, "heads": 4, "projection": 64}, {"width": 96, "heads": 4, "projection": 96})

Report = Callable[[str], None]


def load_world(folder: Path, per_shape: int, seed: int) -> Views:
    """Views of the world, kept in `folder` so that a resumed run does not render them again."""
    from safetensors.torch import load_file, save_file

    file = folder / f"world-{seed}-{per_shape}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(random_world(per_shape, seed)._asdict(), file)
    return Views(**load_file(file))


def train_vae(folder: Path, schedule: Schedule, *, per_shape: int, batch: int, report: Report) -> None:
    """Train the first stage and write `<folder>/vae-final` with its scale and shift, and its figures as vae.json."""
    world = load_world(folder, per_shape, TRAIN_SEED)
    vae: Any = architecture.make_vae(VAE_CHANNELS, seed=TRAIN_SEED)
    pyramid_start(vae, vae.config.latent_channels, TRAIN_SEED)
    part = FirstStage(vae, world, batch=batch)
    for _ in train(part, schedule, folder, seed=TRAIN_SEED, report=report):
        pass
    vae.eval()
    shift, scale = latent_statistics(vae, world, TRAIN_SEED)
    vae.register_to_config(scaling_factor=round(scale, 4), shift_factor=round(shift, 4))
    vae.save_pretrained(folder / "vae-final", safe_serialization=True)
    psnr = reconstruction_psnr(vae, load_world(folder, 100, HELD_OUT_SEED), 1000, HELD_OUT_SEED)
    low = psnr.quantile(0.1).item()
    _figures(folder, "vae", {"psnr_mean_db": psnr.mean().item(), "psnr_tenth_percentile_db": low}, report)


def load_vae(folder: Path) -> Any:
    """The trained first stage of `<folder>/vae-final`, in eval mode."""
    vae: Any = architecture.load_vae(folder / "vae-final")
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def load_latents(folder: Path, vae: Any, per_shape: int, copies: int) -> Latents:
    """The encoded training images, kept in `folder`."""
    from safetensors.torch import load_file, save_file

    file = folder / f"latents-{per_shape}-{copies}.safetensors"
    if not file.exists():
        save_file(encode_world(vae, load_world(folder, per_shape, TRAIN_SEED), copies, TRAIN_SEED)._asdict(), file)
    return Latents(**load_file(file))


def train_sd3(folder: Path, schedule: Schedule, *, per_shape: int, batch: int, report: Report, copies: int = 3) -> None:
    """Train transformer and text encoders on the latents of `<folder>/vae-final` and write `<folder>/tiny-sd3`."""
    vae = load_vae(folder)
    data = load_latents(folder, vae, per_shape, copies)
    words = [word for word in VOCABULARY if word.isalpha()]
    tokenizers = [architecture.make_tokenizer(words) for _ in TEXT]
    encoders = [
        architecture.make_text_encoder(tokenizer, layers=2, seed=TRAIN_SEED + 1 + i, **sizes)
        for i, (tokenizer, sizes) in enumerate(zip(tokenizers, TEXT, strict=True))
    ]
    transformer = architecture.make_transformer(encoders, qk_norm="rms_norm", seed=TRAIN_SEED)
    architecture.zero_modulation(transformer)
    part = FlowPart(transformer, encoders, tokenizers, data, batch=batch)
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


def train_judge(folder: Path, schedule: Schedule, *, per_shape: int, batch: int, report: Report) -> None:
    """Train the judge on views of its own seed and write `<folder>/judge.safetensors`, and its figures as JSON."""
    from safetensors.torch import save_file

    with architecture.seeded(JUDGE_SEED):
        judge = Judge()
    part = JudgePart(judge, load_world(folder, per_shape, JUDGE_SEED), batch=batch)
    for _ in train(part, schedule, folder, seed=JUDGE_SEED, report=report):
        pass
    judge.eval()
    save_file({name: value.half() for name, value in judge.state_dict().items()}, folder / "judge.safetensors")
    held_out = load_world(folder, 100, HELD_OUT_SEED)
    figures = judge_accuracy(judge, held_out, 4000, generator(HELD_OUT_SEED, 0, "judge"))
    _figures(folder, "judge", figures, report)


def _figures(folder: Path, part: str, figures: dict[str, float], report: Report) -> None:
    (folder / f"{part}.json").write_text(json.dumps(figures, indent=2) + "\n")
    report(f"{part}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


PARTS: dict[str, tuple[Callable[..., None], Schedule, dict[str, int]]] = {
    "vae": (train_vae, Schedule(steps=3600, lr=6e-4, warmup=0.01), {"per_shape": 2000, "batch": 8}),
    "sd3": (train_sd3, Schedule(steps=7000, lr=1e-3), {"per_shape": 2000, "batch": 64}),
    "judge": (train_judge, Schedule(steps=3000, lr=2e-3), {"per_shape": 1000, "batch": 64}),
}


def run_part(
    part: str,
    folder: Path,
    *,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    per_shape: int | None = None,
    report: Report = print,
) -> None:
    """Train one of `PARTS`; None keeps the part's own number. Raises ValueError for an unknown part."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    run, schedule, sizes = PARTS[part]
    changes: dict[str, Any] = {"steps": steps, "lr": lr}
    schedule = replace(schedule, **{name: value for name, value in changes.items() if value is not None})
    given = {"batch": batch, "per_shape": per_shape}
    sizes = sizes | {name: value for name, value in given.items() if value is not None}
    run(folder, schedule, report=report, **sizes)


def ship(folder: Path, weights: Path) -> None:
    """Copy the trained prior and judge into `weights` and write their sha256 sums as SHA256SUMS."""
    shutil.rmtree(weights, ignore_errors=True)
    shutil.copytree(folder / "tiny-sd3", weights / "tiny-sd3")
    shutil.copy2(folder / "judge.safetensors", weights / "judge.safetensors")
    files = sorted(file for file in weights.rglob("*") if file.is_file())
    sums = [(hashlib.sha256(file.read_bytes()).hexdigest(), file.relative_to(weights).as_posix()) for file in files]
    (weights / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for digest, name in sums))
