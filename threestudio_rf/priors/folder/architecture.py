"""Fresh, untrained parts of a small Stable Diffusion 3 and the folder they are saved in.

The parts are the real classes of diffusers and transformers in SD3's real shape (MMDiT with patch 2, 16 latent
channels, VAE x8, two CLIP text encoders, pooled projections, shift 3), only narrow, with a tokenizer made from a
word list. No T5.

Number of text tokens. StableDiffusion3Pipeline cuts prompts at the tokenizer's `model_max_length` (16 here instead
of 77) and, where T5 is missing, appends `max_sequence_length` (default 256) zero tokens, which would outnumber the
16 image tokens of a 64 x 64 picture and which the small network never saw in training. So it is trained with 16
text tokens and none appended; `save_sd3` writes that number into model_index.json as `_max_sequence_length`
(diffusers skips names with an underscore) where the adapter of `sd3.py` finds it. The same by the foreign pipeline:

    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    image = pipe("a red mushroom, front view", height=64, width=64, max_sequence_length=0).images[0]

`text_encoder_3=None, tokenizer_3=None` are needed for every SD3 folder without T5, because diffusers does not count
them among the optional parts.

Modules are returned in train mode. Their weights depend on `seed` only; the global random state is left as it was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from threestudio_rf.priors.folder.saving import amend, save, stored

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
MAX_SEQUENCE_LENGTH = "_max_sequence_length"


def byte_alphabet() -> dict[int, str]:
    """Printable stand-ins of the 256 bytes (GPT-2): Latin-1's printable ones stay, the others follow from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merge(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: the known pair of lowest rank is joined until no pair is known."""
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]:
        i = min(pairs)[1]
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
    return parts


def byte_pairs(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) in which each of `words` is one token and any other text falls back to bytes.

    A merge is added only where the earlier ones get stuck, so it cannot change a word that is one token already.
    """
    symbols = byte_alphabet()
    vocabulary = {s: i for i, s in enumerate([*symbols.values(), *(s + END_OF_WORD for s in symbols.values())])}
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        letters = [symbols[byte] for byte in word.lower().encode()]
        if not letters:
            raise ValueError("words: got an empty word, expected letters")
        letters[-1] += END_OF_WORD
        while len(parts := merge(letters, ranks)) > 1:
            ranks[parts[0], parts[1]] = len(ranks)
            vocabulary.setdefault(parts[0] + parts[1], len(vocabulary))
    for special in (BOS, EOS):
        vocabulary[special] = len(vocabulary)
    return vocabulary, list(ranks)


def make_tokenizer(words: Sequence[str], max_len: int = 16) -> CLIPTokenizer:
    """CLIP tokenizer that knows `words` as one token each; `max_len` counts the begin and end tokens.

    ValueError for a word that CLIP's splitting rule cuts into several ("close-up", "t5").
    """
    from transformers import CLIPTokenizer

    vocabulary, merges = byte_pairs(words)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_len)
    for word in words:
        if len(tokenizer(word).input_ids) != 3:
            raise ValueError(f"words: got {word!r}, expected letters only (CLIP splits at digits and punctuation)")
    return tokenizer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights made inside depend on `seed` only; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def clip_config(tokenizer: CLIPTokenizer, *, width: int, layers: int, heads: int) -> CLIPTextConfig:
    """The shape of a CLIP text encoder that reads what `tokenizer` writes."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_text_encoder(
    tokenizer: CLIPTokenizer, width: int, layers: int, heads: int, projection: int, *, seed: int = 0
) -> CLIPTextModelWithProjection:
    """CLIP text encoder for `tokenizer`. SD3 reads hidden_states[-2] (B, T, width) and text_embeds (B, projection)."""
    from transformers import CLIPTextModelWithProjection

    config = clip_config(tokenizer, width=width, layers=layers, heads=heads)
    config.projection_dim = projection
    with seeded(seed):
        return CLIPTextModelWithProjection(config).train()


def make_vae(
    channels: Sequence[int] = (16, 32, 64, 64),
    *,
    latent_channels: int = 16,
    layers_per_block: int = 1,
    groups: int = 8,
    sample_size: int = 64,
    scaling: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
) -> AutoencoderKL:
    """KL autoencoder of factor 2^(len(channels) - 1); latent = (z - shift) * scaling. Set both once it is trained with
    `vae.register_to_config(scaling_factor=..., shift_factor=...)`."""
    from diffusers import AutoencoderKL

    blocks = len(channels)
    with seeded(seed):
        return AutoencoderKL(
            block_out_channels=tuple(channels),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            latent_channels=latent_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=groups,
            sample_size=sample_size,
            scaling_factor=scaling,
            shift_factor=shift,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=False,
        ).train()


def load_vae(folder: str | os.PathLike[str]) -> AutoencoderKL:
    """A first stage saved by `save_pretrained`, in float32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)


def copy_weights(module: nn.Module, folder: str | os.PathLike[str], *, silent: str = "") -> None:
    """Set the weights of `module` to those of a saved part, in place.

    `silent` is a pattern of the last weights of layers (its group "layer") that the saved part may lack: they become
    zero, so that the module does at first what the saved part does. RuntimeError when names or shapes differ otherwise.
    """
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= load_file(file)
    own = dict(module.named_parameters())
    lacking = [name for name in own if name not in weights]
    last = {name: match for name in lacking if (match := re.match(silent, name))} if silent else {}
    layers = tuple(f"{match['layer']}." for match in last.values())
    strange = [name for name in lacking if not name.startswith(layers)]
    unexpected = module.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected or strange:
        raise RuntimeError(f"{folder}: got other weights than {type(module).__name__}'s, such as {strange[:3]}")
    with torch.no_grad():
        for name in last:
            own[name].zero_()


def make_transformer(
    text_encoders: Sequence[CLIPTextModelWithProjection],
    *,
    layers: int = 6,
    heads: int = 5,
    head_dim: int = 32,
    sample_size: int = 8,
    latent_channels: int = 16,
    pos_embed_max_size: int = 16,
    qk_norm: str | None = None,
    seed: int = 0,
) -> SD3Transformer2DModel:
    """MMDiT with patch 2 for latents of `sample_size`, as wide at its text input as the two encoders joined.

    `pos_embed_max_size` is in patches: 16 allows pictures up to 256 pixels. `qk_norm="rms_norm"` is SD3.5's.
    """
    from diffusers import SD3Transformer2DModel

    width = heads * head_dim
    with seeded(seed):
        return SD3Transformer2DModel(
            sample_size=sample_size,
            patch_size=2,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            joint_attention_dim=sum(encoder.config.hidden_size for encoder in text_encoders),
            pooled_projection_dim=sum(encoder.config.projection_dim for encoder in text_encoders),
            caption_projection_dim=width,
            pos_embed_max_size=pos_embed_max_size,
            qk_norm=qk_norm,
        ).train()


def zero_modulation(transformer: SD3Transformer2DModel) -> None:
    """adaLN-zero (Peebles and Xie 2023), in place, for training from scratch: every block starts as the identity and
    the output as zero. diffusers leaves torch's default initialisation."""
    blocks = [[block.norm1.linear, block.norm1_context.linear] for block in transformer.transformer_blocks]
    for linear in [*(linear for pair in blocks for linear in pair), transformer.norm_out.linear, transformer.proj_out]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def save_sd3(
    folder: str | os.PathLike[str],
    *,
    vae: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    text_encoders: Sequence[CLIPTextModelWithProjection],
    tokenizers: Sequence[CLIPTokenizer],
    shift: float = 3.0,
    dtype: torch.dtype = torch.float32,
    max_sequence_length: int = 0,
) -> Path:
    """Write a folder that StableDiffusion3Pipeline.from_pretrained loads (see the module's head) and return its path.

    `dtype` is how weights are stored (float16 halves the folder), not what a reader computes in; the modules given
    are not changed. The tokenizers are written as vocab.json and merges.txt too, the form older readers expect.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    if len(text_encoders) != 2 or len(tokenizers) != 2:
        raise ValueError(f"text encoders, tokenizers: got {len(text_encoders)}, {len(tokenizers)}, expected 2, 2")
    folder = Path(folder)
    pipe = StableDiffusion3Pipeline(
        transformer=stored(transformer, dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=stored(vae, dtype),
        text_encoder=stored(text_encoders[0], dtype),
        tokenizer=tokenizers[0],
        text_encoder_2=stored(text_encoders[1], dtype),
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    save(pipe, folder)
    amend(folder / "model_index.json", {MAX_SEQUENCE_LENGTH: max_sequence_length})
    return folder
