"""PRX (PRXPipeline): u = eps - x0, told t; T5Gemma's features with their mask, FLUX.1's VAE or AutoencoderDC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide, unrepaired
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, read_json, vae_factor

SIZE = 512
"""Pixels of its pictures where model_index.json does not say."""


def shape(at: Places) -> Shape:
    """The size is that of model_index.json: 256, 512 or 1024 pixels."""
    network = Table(at.folder / "transformer/config.json")
    channels = network.whole("in_channels")
    factor = vae_factor(at.vae, channels)
    size = Table(at.folder / "model_index.json").whole("default_sample_size", SIZE)
    return Shape(channels, size // factor, network.whole("patch_size"), factor)


def encoder_class(name: str) -> Any:
    """T5GemmaEncoder, which reads the encoder's half of a T5Gemma's config.json, or a config of its own."""
    from transformers import T5GemmaConfig, T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    class Encoder(T5GemmaEncoder):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, folder: str, **given: Any) -> Any:
            whole = "encoder" in read_json(Path(folder) / "config.json")
            kind = T5GemmaConfig if whole else T5GemmaModuleConfig
            config = kind.from_pretrained(folder, local_files_only=True)
            return super().from_pretrained(folder, config=config.encoder if whole else config, **given)

    return Encoder


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (T, D) and `mask` (T), of the cleaned text."""
    unrepaired(pipe)
    prompt, mask, _, _ = pipe.encode_prompt(text, device, do_classifier_free_guidance=False)
    return {"prompt": prompt[0], "mask": mask[0].bool()}


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w)."""
    out: Tensor = network(
        hidden_states=x,
        timestep=label,
        encoder_hidden_states=texts["prompt"],
        attention_mask=texts["mask"],
        return_dict=False,
    )[0]
    return out


ADAPTER = Adapter(
    name="prx",
    pipeline="PRXPipeline",
    network=("transformer", "PRXTransformer2DModel"),
    text=TextSide({"text_encoder": "T5GemmaEncoder"}, embed, found=encoder_class),
    vaes=("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"),
    licence="Apache-2.0 (PRX)",
    shape=shape,
    ask=ask,
    label="t",
)
