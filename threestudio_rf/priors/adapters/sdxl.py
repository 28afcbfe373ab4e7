"""SDXL (StableDiffusionXLPipeline): eps or v on Stable Diffusion's table, told the index.

Beside the text it reads a pooled vector and six numbers: original size, crop and target size, here the picture's own
and no crop. An empty text is zeros where model_index.json says so, as the pipeline's unconditional part is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, vae_factor


def shape(at: Places) -> Shape:
    """PriorError for a network that reads something else (a refiner, inpainting)."""
    network = Table(at.folder / "unet/config.json")
    channels, made = network.whole("in_channels"), network.whole("out_channels")
    added = network.content.get("addition_embed_type")
    if channels != made or added != "text_time":
        got = f"{channels} channels for {made} of latents, addition_embed_type {added}"
        raise PriorError(f"{at.folder}: its network reads {got}, expected equal channels and text_time")
    patch = 2 ** (len(network.wholes("block_out_channels")) - 1)
    return Shape(channels, network.side("sample_size"), patch, vae_factor(at.vae, channels))


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (77, 2048) of both CLIPs and `pooled` (1280)."""
    prompt, _, pooled, _ = pipe.encode_prompt(text, device=device, do_classifier_free_guidance=False)
    kept = 0 if not text and pipe.config.force_zeros_for_empty_prompt else 1
    return {"prompt": kept * prompt[0], "pooled": kept * pooled[0]}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The UNet's output (B, 4, h, w)."""
    sides = [factor * side for side in x.shape[-2:]]
    sizes = torch.tensor([*sides, 0, 0, *sides]).to(x).expand(len(x), -1)
    added = {"text_embeds": texts["pooled"], "time_ids": sizes}
    given = {"encoder_hidden_states": texts["prompt"], "added_cond_kwargs": added}
    out: Tensor = network(x, label, **given, return_dict=False)[0]
    return out


ADAPTER = Adapter(
    name="sdxl",
    pipeline="StableDiffusionXLPipeline",
    network=("unet", "UNet2DConditionModel"),
    text=TextSide({"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}, embed),
    vaes=("AutoencoderKL", "AutoencoderTiny"),
    licence="CreativeML OpenRAIL++-M (SDXL)",
    shape=shape,
    ask=ask,
    needs=("prompt", "pooled"),
    kind=None,
)
