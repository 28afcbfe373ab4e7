"""PixArt-Sigma (PixArtSigmaPipeline): eps on Stable Diffusion's table, told the index; T5's features with their mask.

Its network gives a variance besides, which is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.sana import shape
from threestudio_rf.priors.adapters.text import Row, TextSide

TOKENS = 300


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (300, D) and `mask` (300), of the text in lower case, as cleaned as the pipeline's call can."""
    found = pipe.encode_prompt(text, False, device=device, clean_caption=True, max_sequence_length=TOKENS)
    return {"prompt": found[0][0], "mask": found[1][0].bool()}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w), without a learned variance."""
    out: Tensor = network(
        x,
        encoder_hidden_states=texts["prompt"],
        encoder_attention_mask=texts["mask"].long(),
        timestep=label,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return out[:, : x.shape[1]]


ADAPTER = Adapter(
    name="pixart",
    pipeline="PixArtSigmaPipeline",
    network=("transformer", "PixArtTransformer2DModel"),
    text=TextSide({"text_encoder": "T5EncoderModel"}, embed, window=TOKENS),
    vaes=("AutoencoderKL", "AutoencoderTiny"),
    licence="CreativeML OpenRAIL++-M (PixArt-Sigma)",
    shape=shape,
    ask=ask,
    kind=None,
)
