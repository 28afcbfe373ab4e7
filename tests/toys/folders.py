"""Tiny folders with random weights of the real classes, one builder per kind; 64 x 64 pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from threestudio_rf.priors.folder.architecture import make_text_encoder, make_tokenizer, make_vae
from threestudio_rf.priors.folder.architecture_sd import SCHEDULE, make_sd_text_encoder
from threestudio_rf.priors.folder.load import quiet

WORDS = ("red", "blue", "green", "mushroom", "ball", "arrow", "barrel", "view", "front", "side", "back", "overhead")
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}<|im_start|> assistant"
    "{% if enable_thinking %} thinking{% endif %}"
)


def words_tokenizer(length: int = 24) -> Any:
    """A tokenizer of whole words with a chat template, padding on the right; it begins every text with <bos>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, "user", "system", "assistant", "thinking", "a", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        model_max_length=length,
        padding_side="right",
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def gemma_settings(tokenizer: Any, width: int = 16) -> dict[str, Any]:
    """A narrow Gemma 2 of two layers."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def flux_vae() -> Any:
    """FLUX.1's VAE: 16 channels, x8, scale and shift."""
    return make_vae((8, 8, 8, 8), groups=4, scaling=0.7, shift=0.1, seed=3)


def deep_vae(channels: int = 8) -> Any:
    """AutoencoderDC, x32."""
    from diffusers import AutoencoderDC

    sizes: dict[str, Any] = {"attention_head_dim": 2, "latent_channels": channels, "scaling_factor": 0.41407}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_block_types": ("ResBlock",) * 6, f"{side}_block_out_channels": (4,) * 5 + (8,)}
        sizes |= {f"{side}_qkv_multiscales": ((),) * 6, f"{side}_layers_per_block": (1,) * 6}
    return AutoencoderDC(
        **sizes,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def sdxl() -> tuple[type, dict[str, Any]]:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    tokenizer = make_tokenizer(WORDS)
    second = make_text_encoder(tokenizer, 24, 2, 2, 8, seed=2)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 2),
        cross_attention_dim=40,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline, {
        "vae": make_vae((8, 8, 8, 8), latent_channels=4, groups=4, scaling=0.13025, seed=3),
        "unet": unet,
        "text_encoder": make_sd_text_encoder(tokenizer, width=16, heads=2, seed=1),
        "text_encoder_2": second,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "scheduler": EulerDiscreteScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading"),
    }


def sana() -> tuple[type, dict[str, Any]]:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = words_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=2,
        patch_size=1,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
    )
    return SanaPipeline, {
        "vae": deep_vae(),
        "transformer": transformer,
        "text_encoder": Gemma2Model(Gemma2Config(**gemma_settings(tokenizer))),
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }


def prx() -> tuple[type, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel
    from transformers import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    tokenizer = words_tokenizer(16)
    config = T5GemmaModuleConfig(**gemma_settings(tokenizer), is_decoder=False, dropout_rate=0.0)
    return PRXPipeline, {
        "vae": flux_vae(),
        "transformer": PRXTransformer2DModel(
            context_in_dim=16, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, axes_dim=[4, 4]
        ),
        "text_encoder": T5GemmaEncoder(config),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "default_sample_size": 64,
    }


BUILDERS: dict[str, Callable[[], tuple[type, dict[str, Any]]]] = {"sdxl": sdxl, "sana": sana, "prx": prx}


def build(kind: str, folder: Path) -> Path:
    """Write a folder of that kind."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(7)
        pipeline, parts = BUILDERS[kind]()
        for part in parts.values():
            if isinstance(part, nn.Module):
                _stir(part.eval())
        pipeline(**parts).save_pretrained(folder)
    if kind == "prx":  # diffusers writes the encoder's half, but reads the whole of T5Gemma's config
        file = folder / "text_encoder/config.json"
        half = json.loads(file.read_text())
        file.write_text(json.dumps({"model_type": "t5gemma", "encoder": half, "decoder": half | {"is_decoder": True}}))
    return folder


def _stir(module: nn.Module) -> None:
    """Weights that a class begins with at zero would hide what they multiply."""
    for weight in module.parameters():
        first = float(weight.detach().flatten()[0])
        if weight.numel() > 1 and bool((weight == first).all()):
            nn.init.normal_(weight, mean=first, std=0.1)
