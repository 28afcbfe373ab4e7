"""Z-Image base (ZImagePipeline): its network gives x0 - eps, is told 1 - t, and takes lists of pictures and texts.

Guidance in its pipeline counts from 0: its g is our scale 1 + g. Texts are Qwen3's features without their padding, each
of its own length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, vae_factor

SIZE, PATCH, TOKENS = 1024, 2, 512


def shape(at: Places) -> Shape:
    """1024 pixels as its pipeline."""
    channels = Table(at.folder / "transformer/config.json").whole("in_channels")
    factor = vae_factor(at.vae, channels)
    return Shape(channels, SIZE // factor, PATCH, factor)


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (512, D), filled with zeros, and `mask` (512)."""
    # a list of its own: the pipeline writes into the one it is given
    [found], _ = pipe.encode_prompt([text], device, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    missing = TOKENS - len(found)
    return {"prompt": F.pad(found, (0, 0, 0, missing)), "mask": torch.arange(TOKENS, device=found.device) < len(found)}


def said(tokenizer: Any, text: str) -> str:
    """The text as a question, with thinking."""
    asked = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=True))


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """Minus the transformer's output (B, C, h, w)."""
    features = [prompt[mask] for prompt, mask in zip(texts["prompt"], texts["mask"], strict=True)]
    out = network(list(x[:, :, None].unbind()), label, features, return_dict=False)[0]
    return -torch.stack(out)[:, :, 0]


ADAPTER = Adapter(
    name="zimage",
    pipeline="ZImagePipeline",
    network=("transformer", "ZImageTransformer2DModel"),
    text=TextSide({"text_encoder": "Qwen3Model"}, embed, said=said, window=TOKENS),
    vaes=("AutoencoderKL", "AutoencoderTiny"),
    licence="Apache-2.0 (Z-Image)",
    shape=shape,
    ask=ask,
    label="1 - t",
    sigmas=True,
)
