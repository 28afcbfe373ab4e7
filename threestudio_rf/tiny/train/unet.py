"""Training of the embedded UNets: `instaflow` from scratch, `sd` and `sd_v` from its weights, `reflow` on its own
noise-image pairs. Latents are in Stable Diffusion's scale: z scaling_factor, without a shift."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.folder import architecture, architecture_sd
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.train.data.captions import CaptionTable
from threestudio_rf.tiny.train.data.latents import CaptionedLatents, Latents
from threestudio_rf.tiny.train.denoise import DenoisePart, Objective, teach_words
from threestudio_rf.tiny.train.reflow import Flow, captions_of, follow, make_pairs
from threestudio_rf.tiny.train.training import Schedule, device_of, train
from threestudio_rf.tiny.world.judge import Judge, load_judge
from threestudio_rf.tiny.world.views import VOCABULARY

SEED = 0
TEXT_WIDTH = 96
CHANNELS, ATTENTION, HEADS = (64, 128, 160), (False, True, True), 4
"""Of the UNet: 16 x 16 latents cost most at the first level, so text is read at 8 x 8 and below, and pooled by all."""
SILENT = r"(?P<layer>.*attentions\.\d+|add_embedding)\.(proj_out|(?<=^add_embedding\.)norm2)\."
"""The last weights of the layers that say nothing where they are zero."""
FOLDERS = {"sd": "tiny-sd", "sd_v": "tiny-sd-v", "instaflow": "tiny-instaflow-1", "reflow": "tiny-instaflow"}
FLOW = Objective(kind="flow", shift=3.0)
OBJECTIVES = {"sd": Objective(), "sd_v": Objective(kind="v"), "instaflow": FLOW, "reflow": FLOW}
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "epsilon"}
"""diffusers' name of each target; it has none for a flow in a UNet's folder."""
STARTS = {"sd": "instaflow", "sd_v": "instaflow", "reflow": "instaflow"}
PAIR_ROUNDS, PAIR_STEPS, PAIR_SCALE = 2, 12, 3.0
"""Rounds through all captions, steps and guidance of the pairs of a reflow."""
WORD_STEPS = 300
"""Steps on captions alone before the first picture."""
COMPARED = 11
"""Every how many captions `compare` takes."""

Report = Callable[[str], None]


def fresh() -> tuple[Any, Any, Any]:
    """(UNet, text encoder, tokenizer) of 16 x 16 latents before any training, from the training seed."""
    tokenizer = architecture.make_tokenizer([word for word in VOCABULARY if word.isalpha()])
    encoder = architecture_sd.make_sd_text_encoder(tokenizer, width=TEXT_WIDTH, seed=SEED + 1)
    unet = architecture_sd.make_unet(
        TEXT_WIDTH, channels=CHANNELS, attention=ATTENTION, heads=HEADS, sample_size=16, pooled=True, seed=SEED
    )
    return unet, encoder, tokenizer


def trained(folder: Path) -> tuple[Any, Any, Any]:
    """(UNet, text encoder, tokenizer) with the weights of a saved folder; layers it lacks say nothing at first."""
    unet, encoder, tokenizer = fresh()
    architecture.copy_weights(unet, folder / "unet", silent=SILENT)
    architecture.copy_weights(encoder, folder / "text_encoder")
    return unet, encoder, tokenizer


def beginning(folder: Path, part: str, start: Path | None) -> Path | None:
    """The folder whose weights a part begins with: `start`, else that of `STARTS`; None for none. ValueError when it is
    not there."""
    begin = folder / FOLDERS[STARTS[part]] if start is None and part in STARTS else start
    if begin is not None and not begin.is_dir():
        hint = f"train the part {STARTS[part]} first, or " if part in STARTS else ""
        raise ValueError(f"{part} begins with the weights of {begin}, which is not there: {hint}use start=shipped")
    return begin


def train_unet(
    folder: Path,
    schedule: Schedule,
    *,
    part: str,
    vae: Any,
    data: Latents,
    batch: int,
    report: Report,
    objective: Objective | None = None,
    start: Path | None = None,
) -> None:
    """Train one of `FOLDERS` on the device of `vae` and write its folder; `data` are latents in SD3's scale,
    (z - shift) scaling_factor.

    `objective` replaces the part's own, `start` is the folder of a trained prior to begin with instead of `STARTS`.
    ValueError when what it begins with is not there.
    """
    objective = OBJECTIVES[part] if objective is None else objective
    begin = beginning(folder, part, start)
    unet, encoder, tokenizer = fresh() if begin is None else trained(begin)
    offset, device = vae.config.shift_factor * vae.config.scaling_factor, device_of(vae)
    unet, encoder = unet.to(device), encoder.to(device)
    noises: Tensor | None = None
    captioned = CaptionedLatents(data, [tokenizer], offset=offset, device=device)
    if part == "reflow":
        pairs, noises = load_pairs(folder, Flow(unet.eval(), encoder.eval(), CaptionTable(tokenizer)), report)
        captioned = CaptionedLatents(pairs, [tokenizer], device=device)
    before = Flow(copy.deepcopy(unet).eval(), copy.deepcopy(encoder).eval(), captioned.tables[0])
    worker = DenoisePart(
        part, unet.train(), encoder.train(), captioned, objective=objective, batch=batch, noises=noises
    )
    train_taught(worker, schedule, folder, report)
    architecture_sd.save_sd(
        folder / FOLDERS[part],
        vae=vae,
        unet=unet,
        text_encoder=encoder,
        tokenizer=tokenizer,
        prediction_type=PREDICTION_TYPES[objective.kind],
        dtype=torch.float16,
    )
    if part == "reflow":
        after = Flow(unet.eval(), encoder.eval(), captioned.tables[0])
        compare(folder, {"before": before, "after": after}, vae, report)


def train_taught(worker: DenoisePart, schedule: Schedule, folder: Path, report: Report) -> None:
    """Teach the text encoder its words, unless the training goes on, then train to the end."""
    if not (folder / f"{worker.name}.pt").exists():
        steps, captions = min(WORD_STEPS, schedule.steps), worker.data.tables[0]
        left = teach_words(worker.encoder, worker.heard, captions, steps=steps, seed=SEED)
        report(f"{worker.name}: cross-entropy {left:.3f} of the words of captions")
    for _ in train(worker, schedule, folder, seed=SEED, report=report):
        pass


def load_pairs(folder: Path, flow: Flow, report: Report) -> tuple[Latents, Tensor]:
    """The flow's noise-image pairs, kept in `folder`."""
    from safetensors.torch import load_file, save_file

    file = folder / "pairs.safetensors"
    if not file.exists():
        report("making noise-image pairs")
        pairs, noises = make_pairs(
            flow, _shape(flow), rounds=PAIR_ROUNDS, steps=PAIR_STEPS, scale=PAIR_SCALE, seed=SEED
        )
        save_file(pairs._asdict() | {"noise": noises}, file)
    tensors = load_file(file)
    noises = tensors.pop("noise")
    return Latents(**tensors), noises


def _shape(flow: Flow) -> tuple[int, int, int]:
    config = flow.unet.config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def compare(
    folder: Path, flows: dict[str, Flow], vae: Any, report: Report, *, seed: int = 1_000_000, steps: int = 20
) -> None:
    """Straightness of held-out paths, how far one Euler step ends from `steps`, and how often the judge names shape and
    colour of either end, before and after the reflow, with and without the pairs' guidance; written as reflow.json."""
    figures: dict[str, float] = {}
    captions, judge = captions_of(1)[::COMPARED], load_judge(weights_folder()).to(device_of(vae))
    for name, flow in flows.items():
        for scale in (1.0, PAIR_SCALE):
            start = normal((len(captions), *_shape(flow)), generator(seed, 0, "straightness"), device=device_of(vae))
            velocity = flow.velocity(captions, scale)
            path, single = follow(velocity, start, steps), follow(velocity, start, 1)
            key = f"{name}_scale_{scale:g}"
            figures[f"straightness_{key}"] = path.straightness.mean().item()
            figures[f"one_step_error_{key}"] = (single.sample - path.sample).square().mean().item()
            for title, end in ((f"{steps}_step", path.sample), ("one_step", single.sample)):
                figures[f"{title}_accuracy_{key}"] = judged_share(judge, vae, end, captions)
    (folder / "reflow.json").write_text(json.dumps(figures, indent=2) + "\n")
    report("reflow: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def judged_share(judge: Judge, vae: Any, latents: Tensor, captions: Tensor) -> float:
    """Share of latents in Stable Diffusion's scale whose judged shape and colour are those of the captions."""
    hits = []
    for some, names in zip(latents.split(96), captions.split(96), strict=True):
        verdict = judge((vae.decode(some / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1))
        seen = verdict.shape.argmax(-1).cpu(), verdict.colour.argmax(-1).cpu()
        hits.append((seen[0] == names[:, 0]) & (seen[1] == names[:, 1]))
    return torch.cat(hits).float().mean().item()
