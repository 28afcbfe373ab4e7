"""Folders of real size with random weights, for bench/real_size.py: SD 1.5, SD 2.1, SD3-medium (without T5), PRX (256
pixels) and Sana 0.6B (512 pixels).

The numbers are those of the public models' config.json (PRX: the defaults of its class); only the tokenizers are ours,
with the same window. The text encoders of PRX and Sana are the encoder of T5Gemma 2B and Gemma 2 2B. Weights are
N(0, 1 / fan-in), norms 1, biases 0, so activations stay finite in bfloat16. Modules are made on the meta device for
their names and shapes, and every tensor is drawn and written by itself: building never holds more than one tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder.architecture import make_tokenizer
from threestudio_rf.priors.folder.architecture_sd import SCHEDULE

PROMPT = "a red mushroom, front view"
WORDS = ("a", "red", "mushroom", "front", "side", "back", "overhead", "view")
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}
CLIP_L = CLIP | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = CLIP | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_G = CLIP | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
GELU = {"hidden_act": "gelu"}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
SD_VAE = VAE | {"latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215}
UNET = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}
MMDIT = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}


CONFIGS = {
    "CLIPTextModel": "CLIPTextConfig",
    "CLIPTextModelWithProjection": "CLIPTextConfig",
    "T5GemmaEncoder": "T5GemmaModuleConfig",
    "Gemma2Model": "Gemma2Config",
}
"""Classes of text encoders and of their configs."""
GEMMA = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
}
GEMMA_PARAMETERS = 2_614_341_888
TINY_GEMMA = {"num_key_value_heads": 2, "head_dim": 16}


@dataclass(frozen=True)
class Part:
    """A module: its class in diffusers or transformers, its config, its number of parameters as published."""

    cls: str
    config: Mapping[str, Any]
    parameters: int
    tiny: Mapping[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> str:
        return "transformers" if self.cls in CONFIGS else "diffusers"


@dataclass(frozen=True)
class Model:
    """`prior` is the adapter that reads the folder, `prediction` diffusers' name of a UNet's output, `size` the side of
    its pictures, `tokens` what its tokenizer gives, `index` what model_index.json says besides."""

    prior: str
    pipeline: str
    parts: Mapping[str, Part]
    prediction: str = ""
    size: int = 512
    tokens: int = 77
    index: Mapping[str, Any] = field(default_factory=dict)


def _sd(unet: Part, text: Part, prediction: str, vae: Mapping[str, Any] = SD_VAE) -> Model:
    parts = {"text_encoder": text, "unet": unet, "vae": Part("AutoencoderKL", vae, 83_653_863)}
    return Model("sd", "StableDiffusionPipeline", parts, prediction)


MODELS = {
    "sd15": _sd(
        Part(
            "UNet2DConditionModel",
            UNET | {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
            859_520_964,
        ),
        Part("CLIPTextModel", CLIP_L, 123_060_480),
        "epsilon",
    ),
    "sd21": _sd(
        Part(
            "UNet2DConditionModel",
            UNET
            | {"sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
            | {"use_linear_projection": True},
            865_910_724,
        ),
        Part("CLIPTextModel", CLIP_H | GELU, 340_387_840),
        "v_prediction",
        SD_VAE | {"sample_size": 768},
    ),
    "sd3": Model(
        "sd3",
        "StableDiffusion3Pipeline",
        {
            "text_encoder": Part("CLIPTextModelWithProjection", CLIP_L | {"projection_dim": 768}, 123_650_304),
            "text_encoder_2": Part(
                "CLIPTextModelWithProjection", CLIP_G | GELU | {"projection_dim": 1280}, 694_659_840
            ),
            "transformer": Part("SD3Transformer2DModel", MMDIT, 2_028_328_000),
            "vae": Part(
                "AutoencoderKL",
                VAE
                | {"latent_channels": 16, "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609}
                | {"use_quant_conv": False, "use_post_quant_conv": False},
                83_819_683,
            ),
        },
    ),
    "prx": Model(
        "prx",
        "PRXPipeline",
        {
            "text_encoder": Part(
                "T5GemmaEncoder", GEMMA | {"is_decoder": False, "dropout_rate": 0.0}, GEMMA_PARAMETERS, TINY_GEMMA
            ),
            "transformer": Part(
                "PRXTransformer2DModel",
                {"context_in_dim": 2304, "hidden_size": 1792, "num_heads": 28, "depth": 16, "axes_dim": [32, 32]},
                0,
                {"context_in_dim": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]},
            ),
            "vae": Part(
                "AutoencoderKL",
                VAE
                | {"latent_channels": 16, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159}
                | {"use_quant_conv": False, "use_post_quant_conv": False},
                83_819_683,
            ),
        },
        size=256,
        tokens=256,
        index={"default_sample_size": 256},
    ),
    "sana": Model(
        "sana",
        "SanaPipeline",
        {
            "text_encoder": Part("Gemma2Model", GEMMA, GEMMA_PARAMETERS, TINY_GEMMA),
            "transformer": Part(
                "SanaTransformer2DModel",
                {
                    "in_channels": 32,
                    "out_channels": 32,
                    "num_layers": 28,
                    "num_attention_heads": 36,
                    "attention_head_dim": 32,
                    "num_cross_attention_heads": 16,
                    "cross_attention_head_dim": 72,
                    "cross_attention_dim": 1152,
                    "caption_channels": 2304,
                    "sample_size": 16,
                    "patch_size": 1,
                },
                0,
                {"caption_channels": 32, "attention_head_dim": 8, "num_cross_attention_heads": 2}
                | {"cross_attention_head_dim": 16, "cross_attention_dim": 32},
            ),
            "vae": Part(
                "AutoencoderDC",
                {
                    "latent_channels": 32,
                    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
                    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
                    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
                    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
                    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
                    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
                    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
                    "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
                    "downsample_block_type": "Conv",
                    "upsample_block_type": "interpolate",
                    "decoder_norm_types": "rms_norm",
                    "decoder_act_fns": "silu",
                    "scaling_factor": 0.41407,
                },
                0,
                {f"{side}_block_out_channels": [32] * 6 for side in ("encoder", "decoder")},
            ),
        },
        tokens=300,
    ),
}

TINY: Mapping[str, Any] = {
    "block_out_channels": [32, 32, 64, 64],
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "num_layers": 2,
    "joint_attention_dim": 64,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
}
"""What `--scale tiny` puts in place of the numbers above, wherever a config has them."""


def scaled(part: Part, scale: str) -> dict[str, Any]:
    """The config at "real" or "tiny" scale."""
    small = {**TINY, **part.tiny}
    return {name: small.get(name, value) if scale == "tiny" else value for name, value in part.config.items()}


def blank(part: Part, scale: str) -> Any:
    """The module without storage."""
    import diffusers
    import transformers

    config, tokenizer = scaled(part, scale), make_tokenizer(WORDS, 77)
    with torch.device("meta"):
        if part.library == "diffusers":
            return getattr(diffusers, part.cls)(**config)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        full = getattr(transformers, CONFIGS[part.cls])(**config, **ids, architectures=[part.cls])
        found = transformers.models.t5gemma.modeling_t5gemma if part.cls == "T5GemmaEncoder" else transformers
        return getattr(found, part.cls)(full)


def parameters(module: Any) -> int:
    """Number of parameters."""
    return sum(value.numel() for value in module.parameters())


def write_weights(file: Path, shapes: Mapping[str, torch.Size], draw: Callable[[str, torch.Size], Tensor]) -> None:
    """A safetensors file in bfloat16, written tensor by tensor under another name and renamed when it is whole.

    The format: 8 bytes of length, that many of JSON with name, dtype, shape, offsets; then the numbers.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            stream.write(draw(name, shape).bfloat16().view(torch.int16).numpy().tobytes())
    os.replace(part, file)


def drawing(seed: int) -> Callable[[str, torch.Size], Tensor]:
    """N(0, 1 / fan-in) for matrices and kernels, 1 for the weights of norms, 0 for biases."""
    random = generator(seed, 0, "bench/real_size")

    def draw(name: str, shape: torch.Size) -> Tensor:
        if len(shape) < 2:
            return torch.full(shape, float(name.endswith("weight")))
        return torch.randn(shape, generator=random).mul_(prod(shape[1:]) ** -0.5)

    return draw


def missing(model: Model, folder: Path) -> Iterator[str]:
    """Parts that the folder does not hold yet."""
    for name, part in model.parts.items():
        if not (folder / name / weight_name(part)).is_file():
            yield name


def weight_name(part: Part) -> str:
    return "model.safetensors" if part.library == "transformers" else "diffusion_pytorch_model.safetensors"


def build(model: Model, folder: Path, scale: str) -> dict[str, int]:
    """Write what is missing of the folder; the number of parameters of each part.

    SystemExit when a count is not the published one, or when the disk has too little room.
    """
    counts, todo = {}, list(missing(model, folder))
    modules = {name: blank(part, scale) for name, part in model.parts.items()}
    for name, part in model.parts.items():
        counts[name] = parameters(modules[name])
        if scale == "real" and part.parameters and counts[name] != part.parameters:
            raise SystemExit(f"{part.cls}: got {counts[name]} parameters, expected {part.parameters}")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = 2.05 * sum(value.numel() for name in todo for value in modules[name].state_dict().values())
    free = shutil.disk_usage(folder).free
    if wanted > 0.95 * free:
        raise SystemExit(f"{folder}: {wanted / 2**30:.1f} GiB are needed, {free / 2**30:.1f} are free; give --folder")
    for seed, name in enumerate(todo):
        module, part = modules[name], model.parts[name]
        (folder / name).mkdir(exist_ok=True)
        if part.library == "transformers":
            module.config.save_pretrained(folder / name)
        else:
            module.save_config(folder / name)
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        write_weights(folder / name / weight_name(part), shapes, drawing(seed))
    write_frame(model, folder)
    return counts


def write_frame(model: Model, folder: Path) -> None:
    """Scheduler, tokenizers and model_index.json."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    options = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "prediction_type": model.prediction}
    scheduler = DDIMScheduler(**SCHEDULE, **options) if model.prediction else FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": model.pipeline, "scheduler": ["diffusers", type(scheduler).__name__]}
    index |= model.index
    for name, part in model.parts.items():
        index[name] = [part.library, part.cls]
        if part.library == "transformers":
            tokenizer = name.replace("text_encoder", "tokenizer")
            make_tokenizer(WORDS, model.tokens).save_pretrained(folder / tokenizer)
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
    absent = {"sd3": ("text_encoder_3", "tokenizer_3"), "sd": ("safety_checker", "feature_extractor")}
    index |= {name: [None, None] for name in absent.get(model.prior, ())}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
