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
    made.pre_tokenizer = pre_tokenizers.Whitespace()
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
        timestep_scale=0.5,
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


def qwen_settings(tokenizer: Any, layers: int = 2) -> dict[str, Any]:
    """A narrow Qwen 3."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": layers,
        "max_window_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "pad_token_id": tokenizer.pad_token_id,
    }


def dynamic(**more: Any) -> Any:
    """The scheduler of flows whose shift grows with the number of tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **more)


def flux2_klein() -> tuple[type, dict[str, Any]]:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = words_tokenizer(1024)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        batch_norm_eps=0.05,
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline, {
        "vae": vae,
        "transformer": Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            guidance_embeds=False,
        ),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(**qwen_settings(tokenizer, 28))),
        "tokenizer": tokenizer,
        "scheduler": dynamic(),
    }


def zimage() -> tuple[type, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = words_tokenizer(1024)
    transformer = ZImageTransformer2DModel(
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    nn.init.normal_(transformer.x_pad_token)
    nn.init.normal_(transformer.cap_pad_token)
    return ZImagePipeline, {
        "vae": flux_vae(),
        "transformer": transformer,
        "text_encoder": Qwen3Model(Qwen3Config(**qwen_settings(tokenizer))),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


def qwen_image() -> tuple[type, dict[str, Any]]:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = words_tokenizer(1024)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config={**qwen_settings(tokenizer), "rope_parameters": rope},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )
    return QwenImagePipeline, {
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[0.5, 1.5, 0.8, 1.1],
        ),
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": tokenizer,
        "scheduler": dynamic(),
    }


def prx_pixel() -> tuple[type, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPixelPipeline, PRXTransformer2DModel
    from transformers import Qwen3VLTextConfig, Qwen3VLTextModel

    tokenizer = words_tokenizer(1024)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6}
    return PRXPixelPipeline, {
        "transformer": PRXTransformer2DModel(
            in_channels=3,
            patch_size=16,
            context_in_dim=16,
            hidden_size=16,
            mlp_ratio=2.0,
            num_heads=2,
            depth=2,
            axes_dim=[4, 4],
            bottleneck_size=8,
            resolution_embeds=True,
        ),
        "text_encoder": Qwen3VLTextModel(Qwen3VLTextConfig(**qwen_settings(tokenizer), rope_parameters=rope)),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "default_sample_size": 64,
    }


def chroma() -> tuple[type, dict[str, Any]]:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = words_tokenizer(1024)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return ChromaPipeline, {
        "vae": flux_vae(),
        "transformer": ChromaTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
        "text_encoder": T5EncoderModel(config),
        "tokenizer": tokenizer,
        "scheduler": dynamic(),
    }


def lumina2() -> tuple[type, dict[str, Any]]:
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = words_tokenizer(256)
    return Lumina2Pipeline, {
        "vae": flux_vae(),
        "transformer": Lumina2Transformer2DModel(
            sample_size=8,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 64, 64),
            cap_feat_dim=16,
        ),
        "text_encoder": Gemma2Model(Gemma2Config(**gemma_settings(tokenizer))),
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


def pixart() -> tuple[type, dict[str, Any]]:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = words_tokenizer(300)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return PixArtSigmaPipeline, {
        "vae": make_vae((8, 8, 8, 8), latent_channels=4, groups=4, scaling=0.13025, seed=3),
        "transformer": PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=8,
            use_additional_conditions=False,
        ),
        "text_encoder": T5EncoderModel(config),
        "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(**SCHEDULE),
    }


BUILDERS: dict[str, Callable[[], tuple[type, dict[str, Any]]]] = {
    "sdxl": sdxl,
    "sana": sana,
    "prx": prx,
    "flux2_klein": flux2_klein,
    "zimage": zimage,
    "qwen_image": qwen_image,
    "prx_pixel": prx_pixel,
    "chroma": chroma,
    "lumina2": lumina2,
    "pixart": pixart,
}


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
