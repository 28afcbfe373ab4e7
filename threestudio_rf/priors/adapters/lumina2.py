"""Lumina-Image 2.0 (Lumina2Pipeline): its network gives x0 - eps, is told 1 - t; Gemma2's features with their mask.

A prompt is preceded by the pipeline's own system prompt, the empty text is not. Under guidance its sampler keeps the
length of the prompt's own velocity in every row of the latents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.sana import shape
from threestudio_rf.priors.adapters.text import Row, TextSide

TOKENS = 256


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (256, D) and `mask` (256)."""
    given = {"device": device, "max_sequence_length": TOKENS}
    prompt, mask, empty, no_mask = pipe.encode_prompt(text, not text, **given)
    found = (prompt, mask) if text else (empty, no_mask)
    return {"prompt": found[0][0], "mask": found[1][0].bool()}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """Minus the transformer's output (B, C, h, w)."""
    out: Tensor = network(
        hidden_states=x,
        timestep=label,
        encoder_hidden_states=texts["prompt"],
        encoder_attention_mask=texts["mask"].long(),
        return_dict=False,
    )[0]
    return -out


ADAPTER = Adapter(
    name="lumina2",
    pipeline="Lumina2Pipeline",
    network=("transformer", "Lumina2Transformer2DModel"),
    text=TextSide({"text_encoder": "Gemma2Model"}, embed, window=TOKENS),
    vaes=("AutoencoderKL", "AutoencoderTiny"),
    licence="Apache-2.0 (Lumina-Image 2.0)",
    shape=shape,
    ask=ask,
    label="1 - t",
    lengths=lambda u: u.norm(dim=-1, keepdim=True),
    sigmas=True,
)
