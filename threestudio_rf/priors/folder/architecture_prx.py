"""Fresh, untrained parts of a small PRXPixel and the folder they are saved in; see `architecture.py`.

The parts are the real classes (a transformer that predicts x0 of pixels, a Qwen 3 as its text encoder, no VAE), only
narrow, at patches of 8 pixels. The tokenizer is CLIP's of a word list, so that every text, the empty one too, has a
token at its begin and one at its end:

    pipe = PRXPixelPipeline.from_pretrained(folder)
    image = pipe("a red mushroom, front view", height=64, width=64, use_resolution_binning=False).images[0]
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from threestudio_rf.priors.folder.architecture import seeded
from threestudio_rf.priors.folder.saving import save, stored

if TYPE_CHECKING:
    from diffusers import PRXTransformer2DModel
    from transformers import CLIPTokenizer, Qwen3VLTextModel


def make_qwen(
    tokenizer: CLIPTokenizer, *, width: int = 64, layers: int = 2, heads: int = 4, seed: int = 0
) -> Qwen3VLTextModel:
    """Text encoder for `tokenizer`; the transformer reads last_hidden_state (B, T, width). ValueError unless `width` is
    a multiple of eight times `heads`."""
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    if width % (8 * heads):
        raise ValueError(f"width: got {width}, expected a multiple of {8 * heads}, 8 for each of {heads} heads")
    share = width // heads // 8
    config = Qwen3VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={"rope_type": "default", "mrope_section": [2 * share, share, share], "rope_theta": 1e4},
    )
    with seeded(seed):
        return Qwen3VLTextModel(config).train()


def make_prx(
    text_width: int, *, width: int = 192, depth: int = 6, heads: int = 3, patch: int = 8, seed: int = 0
) -> PRXTransformer2DModel:
    """A transformer of pictures (B, 3, H, W), whose every block starts as the identity and whose output as zero."""
    from diffusers import PRXTransformer2DModel

    half = width // heads // 2
    with seeded(seed):
        transformer = PRXTransformer2DModel(
            in_channels=3,
            patch_size=patch,
            context_in_dim=text_width,
            hidden_size=width,
            mlp_ratio=2.0,
            num_heads=heads,
            depth=depth,
            axes_dim=[half, half],
        ).train()
    nn.init.zeros_(transformer.final_layer.linear.weight)
    nn.init.zeros_(transformer.final_layer.linear.bias)
    return transformer


def save_prx_pixel(
    folder: str | os.PathLike[str],
    *,
    transformer: PRXTransformer2DModel,
    text_encoder: Qwen3VLTextModel,
    tokenizer: CLIPTokenizer,
    size: int = 64,
    shift: float = 1.5,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a folder that PRXPixelPipeline.from_pretrained loads, of pictures of `size` pixels, and return its path.

    With noise of deviation 2 a shift of 1.5 is one of 3 on the straight path. `dtype` is how weights are stored; the
    modules given are not changed.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPixelPipeline

    folder = Path(folder)
    pipe = PRXPixelPipeline(
        transformer=stored(transformer, dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        text_encoder=stored(text_encoder, dtype),
        tokenizer=tokenizer,
        default_sample_size=size,
        prompt_max_tokens=tokenizer.model_max_length,
    )
    return save(pipe, folder)
