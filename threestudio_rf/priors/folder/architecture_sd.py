"""Fresh, untrained parts of a small Stable Diffusion and the folder they are saved in; see `architecture.py`.

The parts are the real classes in the real shape (UNet with cross-attention on the last hidden states of one CLIP text
encoder, KL autoencoder x8), only narrow. StableDiffusionPipeline multiplies latents by the VAE's scaling_factor and
knows no shift:

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    image = pipe("a red mushroom, front view", height=64, width=64).images[0]
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from threestudio_rf.priors.folder.architecture import clip_config, seeded
from threestudio_rf.priors.folder.saving import save, stored

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
"""Stable Diffusion's own table, in diffusers' names."""


def make_sd_text_encoder(
    tokenizer: CLIPTokenizer, *, width: int = 64, layers: int = 2, heads: int = 4, seed: int = 0
) -> CLIPTextModel:
    """CLIP text encoder for `tokenizer`; the UNet reads last_hidden_state (B, T, width), after the final norm."""
    from transformers import CLIPTextModel

    with seeded(seed):
        return CLIPTextModel(clip_config(tokenizer, width=width, layers=layers, heads=heads)).train()


def make_unet(
    text_width: int | None,
    *,
    channels: Sequence[int] = (64, 80),
    latent_channels: int = 16,
    sample_size: int = 8,
    attention: Sequence[bool] = (False, True),
    heads: int = 2,
    groups: int = 8,
    extra_channels: int = 0,
    class_width: int | None = None,
    pooled: bool = False,
    seed: int = 0,
) -> UNet2DConditionModel:
    """UNet with one residual block per level; `attention` says which levels read the text, the middle always does.

    Without a `text_width` nothing reads text. `extra_channels` are read beside the latents. A vector (B, class_width)
    given as `class_labels` is added to the embedded time after a small network. With `pooled` the text, pooled by
    attention, is added there too, so that every block hears it. ValueError unless there is one entry
    of `attention` per level, all False where there is no text.
    """
    from diffusers import UNet2DConditionModel

    if len(channels) != len(attention):
        raise ValueError(f"attention: got {len(attention)} entries, expected {len(channels)}, one per level")
    if text_width is None and any(attention):
        raise ValueError(f"attention: got {tuple(attention)}, expected only False without a text width")
    kinds = ["CrossAttn" if reads else "" for reads in attention]
    with seeded(seed):
        return UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=latent_channels + extra_channels,
            out_channels=latent_channels,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
            up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
            mid_block_type="UNetMidBlock2D" if text_width is None else "UNetMidBlock2DCrossAttn",
            cross_attention_dim=text_width or 1,  # a number is wanted even where nothing reads text
            class_embed_type=None if class_width is None else "projection",
            projection_class_embeddings_input_dim=class_width,
            addition_embed_type="text" if pooled else None,
            addition_embed_type_num_heads=heads,
            attention_head_dim=heads,  # diffusers' name for the number of heads
            norm_num_groups=groups,
        ).train()


def save_sd(
    folder: str | os.PathLike[str],
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    prediction_type: str = "epsilon",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a folder that StableDiffusionPipeline.from_pretrained loads and return its path.

    `prediction_type` is diffusers' name, "epsilon" or "v_prediction"; nothing in such a folder can tell a flow.
    `dtype` is how weights are stored, not what a reader computes in; the modules given are not changed.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = Path(folder)
    scheduler = DDIMScheduler(
        **SCHEDULE,
        prediction_type=prediction_type,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    pipe = StableDiffusionPipeline(
        vae=stored(vae, dtype),
        text_encoder=stored(text_encoder, dtype),
        tokenizer=tokenizer,
        unet=stored(unet, dtype),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return save(pipe, folder)
