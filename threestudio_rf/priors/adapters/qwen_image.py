"""Qwen-Image (QwenImagePipeline): u = eps - x0, told t, which its network rounds in bfloat16; latents are packed 2 x 2.

Under guidance its sampler keeps the length of the prompt's own velocity in every token. Texts are of any length
up to 512 tokens, with a mask. The VAE is that of a video, one frame long; Wan 2.1's, which it was made from, fits too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table

SIZE, PATCH, TOKENS = 1024, 2, 512


def shape(at: Places) -> Shape:
    """1024 pixels; PriorError for a VAE of another number of channels."""
    channels = Table(at.folder / "transformer/config.json").whole("in_channels") // PATCH**2
    vae = Table(at.vae / "config.json")
    if vae.whole("z_dim") != channels:
        raise PriorError(f"{at.vae}: this VAE makes {vae.whole('z_dim')} latent channels, the network reads {channels}")
    factor = 2 ** len(vae.content.get("temperal_downsample", (0, 1, 2)))
    return Shape(channels, SIZE // factor, PATCH, factor)


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (512, D), filled with zeros, and `mask` (512)."""
    prompt, _ = pipe.encode_prompt(text, device=device, max_sequence_length=TOKENS)
    n = prompt.shape[1]
    return {"prompt": F.pad(prompt[0], (0, 0, 0, TOKENS - n)), "mask": torch.arange(TOKENS, device=prompt.device) < n}


def packed(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w / 4, 4 C)."""
    return F.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `packed`, in the shape of `like` (B, C, h, w)."""
    h, w = (side // PATCH for side in like.shape[-2:])
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (h, w)), PATCH)


def lengths(u: Tensor) -> Tensor:
    """(B, 1, h, w), that of each token."""
    h, w = (side // PATCH for side in u.shape[-2:])
    found: Tensor = packed(u).norm(dim=-1).unflatten(1, (h, w))[:, None]
    return found.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w)."""
    longest = int(texts["mask"].sum(1).max())
    mask = texts["mask"][:, :longest]
    h, w = (side // PATCH for side in x.shape[-2:])
    out: Tensor = network(
        hidden_states=packed(x),
        timestep=label,
        guidance=None,
        encoder_hidden_states=texts["prompt"][:, :longest],
        encoder_hidden_states_mask=None if bool(mask.all()) else mask,
        img_shapes=[[(1, h, w)]] * len(x),
        return_dict=False,
    )[0]
    return unpacked(out, x)


ADAPTER = Adapter(
    name="qwen_image",
    pipeline="QwenImagePipeline",
    network=("transformer", "QwenImageTransformer2DModel"),
    text=TextSide({"text_encoder": "Qwen2_5_VLForConditionalGeneration"}, embed, window=TOKENS),
    vaes=("AutoencoderKLQwenImage", "AutoencoderKLWan"),
    licence="Apache-2.0 (Qwen-Image)",
    shape=shape,
    ask=ask,
    label="t",
    hear=lambda t, dtype: t.to(dtype).double(),
    sigmas=True,
    lengths=lengths,
)
