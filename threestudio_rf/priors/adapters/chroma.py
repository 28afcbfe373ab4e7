"""Chroma (ChromaPipeline): u = eps - x0, told t, which its network rounds twice in bfloat16; latents packed 2 x 2.

T5's features of 512 tokens; the mask covers text and picture, with one token of padding left in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.qwen_image import PATCH, SIZE, packed, unpacked
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, vae_factor

TOKENS = 512


def shape(at: Places) -> Shape:
    """1024 pixels as its pipeline."""
    channels = Table(at.folder / "transformer/config.json").whole("in_channels") // PATCH**2
    factor = vae_factor(at.vae, channels)
    return Shape(channels, SIZE // factor, PATCH, factor)


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (512, D) and `mask` (512)."""
    found = pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    return {"prompt": found[0][0], "mask": found[2][0].bool()}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w)."""
    tokens = packed(x)
    rows, columns = (torch.arange(side // PATCH) for side in x.shape[-2:])
    places = torch.cartesian_prod(torch.arange(1), rows, columns).to(x)
    seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device)
    out: Tensor = network(
        hidden_states=tokens,
        timestep=label,
        encoder_hidden_states=texts["prompt"],
        txt_ids=torch.zeros(texts["prompt"].shape[1], 3).to(x),
        img_ids=places,
        attention_mask=torch.cat([texts["mask"], seen], 1).to(x.dtype),
        return_dict=False,
    )[0]
    return unpacked(out, x)


ADAPTER = Adapter(
    name="chroma",
    pipeline="ChromaPipeline",
    network=("transformer", "ChromaTransformer2DModel"),
    text=TextSide({"text_encoder": "T5EncoderModel"}, embed, window=TOKENS),
    vaes=("AutoencoderKL", "AutoencoderTiny"),
    licence="Apache-2.0 (Chroma)",
    shape=shape,
    ask=ask,
    label="t",
    hear=lambda t, dtype: (t.to(dtype) * 1000).double() / 1000,
    sigmas=True,
)
