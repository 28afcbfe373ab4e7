"""Training of a prior without a first stage: a small PRXPixel that predicts x0 in pixels (JiT, arXiv 2511.13720)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.times import draw as draw_times
from threestudio_rf.priors.adapters.prx import ask
from threestudio_rf.priors.adapters.prx_pixel import ADAPTER, CLEANEST, DEVIATION
from threestudio_rf.priors.folder import architecture, architecture_prx
from threestudio_rf.tiny.train.data.latents import CaptionedLatents
from threestudio_rf.tiny.train.data.stores import TRAIN_SEED, load_latents
from threestudio_rf.tiny.train.denoise import STEPS, DenoisePart, Drawn, Objective
from threestudio_rf.tiny.train.training import Schedule
from threestudio_rf.tiny.train.unet import train_taught
from threestudio_rf.tiny.world.views import IMAGE_SIZE, VOCABULARY

TEXT_WIDTH = 96
SHIFT = 2.0
"""Of the logit-normal times; a picture keeps more of itself under noise than its 16 times smaller latents."""
OBJECTIVE = Objective(kind="x0", simple=0.0, elbo=1.0)
"""The squared error of x0 under the weight of `draw_pixel` alone: that of the velocity."""


class Told(NamedTuple):
    """A text encoder's answer: features (B, T, D), that of the last token (B, D), and which tokens are no padding."""

    last_hidden_state: Tensor
    pooler_output: Tensor
    mask: Tensor


class Text(nn.Module):
    """A Qwen 3 asked by token ids (B, T) alone: what follows the first `end` is padding."""

    def __init__(self, encoder: Any, end: int) -> None:
        super().__init__()
        self.encoder, self.config, self.end = encoder, encoder.config, end

    def forward(self, ids: Tensor) -> Told:
        """Features of the ids."""
        ends = ids == self.end
        mask = ends.cumsum(1) - ends.long() == 0
        features = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return Told(features, features[torch.arange(len(ids)), mask.sum(1) - 1], mask)


def draw_pixel(n: int, draw: Generator) -> Drawn:
    """Logit-normal times of PRXPixel's path x_t = (1 - t) x0 + 2 t eps; the label is t, and the weight 1 / (2 t)^2
    makes an error of x0 one of the pipeline's velocity (x_t - x0) / max(t, 0.05), in units of its noise."""
    t = draw_times(n, draw, t_min=0.0, t_max=1.0, law="logit_normal", shift=SHIFT)
    weight = (DEVIATION * t.clamp(min=CLEANEST)) ** -2
    return Drawn(t, (t * STEPS).long().clamp(max=STEPS - 1), ADAPTER.path(t), weight)


def ask_prx(network: Any, x_t: Tensor, label: Tensor, text: Told) -> Tensor:
    """x0 as the adapter asks for it."""
    return ask(network, x_t, label, {"prompt": text.last_hidden_state, "mask": text.mask}, 1)


def fresh_pixel() -> tuple[Any, Any, Any]:
    """(transformer, text encoder, tokenizer) before any training, from the training seed."""
    tokenizer = architecture.make_tokenizer([word for word in VOCABULARY if word.isalpha()])
    encoder = architecture_prx.make_qwen(tokenizer, width=TEXT_WIDTH, seed=TRAIN_SEED + 1)
    return architecture_prx.make_prx(TEXT_WIDTH, seed=TRAIN_SEED), encoder, tokenizer


def train_pixel(
    folder: Path,
    schedule: Schedule,
    *,
    per_shape: int,
    batch: int,
    report: Callable[[str], None],
    device: torch.device | str = "cpu",
    copies: int = 2,
) -> None:
    """Train transformer and text encoder on pictures of 64 pixels and write `<folder>/tiny-pixel`, which
    `prior=prx_pixel prior.path=<folder>/tiny-pixel` opens."""
    data = load_latents(folder, None, per_shape, copies, size=IMAGE_SIZE, device=device)
    transformer, encoder, tokenizer = fresh_pixel()
    text = Text(encoder, tokenizer.eos_token_id).to(device)
    captioned = CaptionedLatents(data, [tokenizer])
    worker = DenoisePart(
        "pixel",
        transformer.to(device),
        text,
        captioned,
        objective=OBJECTIVE,
        batch=batch,
        ask=ask_prx,
        times=draw_pixel,
    )
    train_taught(worker, schedule, folder, report)
    architecture_prx.save_prx_pixel(
        folder / "tiny-pixel", transformer=transformer, text_encoder=encoder, tokenizer=tokenizer, dtype=torch.float16
    )
