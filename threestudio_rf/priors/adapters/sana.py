"""Sana (SanaPipeline): u = eps - x0, told 1000 t timestep_scale; Gemma2's features with their mask, AutoencoderDC.

A prompt is preceded by the long instruction that the pipeline's call adds (its `encode_prompt` by itself does not);
the empty text, its unconditional part, is not.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, vae_factor


def shape(at: Places) -> Shape:
    """One latent of 32 x 32 pixels for released weights."""
    network = Table(at.folder / "transformer/config.json")
    channels = network.whole("in_channels")
    return Shape(channels, network.side("sample_size"), network.whole("patch_size"), vae_factor(at.vae, channels))


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (300, D) and `mask` (300)."""
    given = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    asked = given if text else None
    prompt, mask, _, _ = pipe.encode_prompt(text, False, device=device, complex_human_instruction=asked)
    return {"prompt": prompt[0], "mask": mask[0].bool()}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w), without a learned variance."""
    out: Tensor = network(
        x,
        encoder_hidden_states=texts["prompt"],
        timestep=label,
        encoder_attention_mask=texts["mask"].long(),
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]


ADAPTER = Adapter(
    name="sana",
    pipeline="SanaPipeline",
    network=("transformer", "SanaTransformer2DModel"),
    text=TextSide({"text_encoder": "Gemma2Model"}, embed, window=300),
    vaes=("AutoencoderDC",),
    licence="see the page of its weights (NVIDIA's Sana licence: some of them for research only)",
    shape=shape,
    ask=ask,
)
