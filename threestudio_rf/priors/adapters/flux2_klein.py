"""FLUX.2-klein-base (Flux2KleinPipeline): u = eps - x0, told t.

In bfloat16 the network rounds t twice, to bfloat16 and again times 1000. Its latents are the VAE's, 2 x 2 of them as
channels, normalised by its batch norm. Text is three layers of Qwen3 for 512 tokens, padding among them: no mask
reaches the network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.priors.adapters.base import Adapter, Texts
from threestudio_rf.priors.adapters.text import Row, TextSide
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table, vae_factor

SIZE, PATCH, TOKENS = 1024, 2, 512


def shape(at: Places) -> Shape:
    """One latent of 16 x 16 pixels; 1024 pixels as its pipeline."""
    channels = Table(at.folder / "transformer/config.json").whole("in_channels")
    factor = PATCH * vae_factor(at.vae, channels // PATCH**2)
    return Shape(channels, SIZE // factor, 1, factor)


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (512, 3 D)."""
    prompt, _ = pipe.encode_prompt(text, device=device, max_sequence_length=TOKENS)
    return {"prompt": prompt[0]}


def said(tokenizer: Any, text: str) -> str:
    """The text as a question, without thinking."""
    asked = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False))


def shift(tokens: int, steps: int) -> float:
    """mu of its pipeline."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return float(compute_empirical_mu(image_seq_len=tokens, num_steps=steps))


def ask(network: Any, x: Tensor, label: Tensor, texts: Texts, factor: int) -> Tensor:
    """The transformer's output (B, C, h, w)."""
    one, prompt = torch.arange(1), texts["prompt"]
    rows, columns = (torch.arange(side) for side in x.shape[-2:])
    out: Tensor = network(
        hidden_states=x.flatten(2).transpose(1, 2),
        timestep=label,
        guidance=None,
        encoder_hidden_states=prompt,
        txt_ids=torch.cartesian_prod(one, one, one, torch.arange(prompt.shape[1])).to(x.device),
        img_ids=torch.cartesian_prod(one, rows, columns, one).to(x.device),
        return_dict=False,
    )[0]
    return out.transpose(1, 2).reshape(x.shape)


ADAPTER = Adapter(
    name="flux2_klein",
    pipeline="Flux2KleinPipeline",
    network=("transformer", "Flux2Transformer2DModel"),
    text=TextSide({"text_encoder": "Qwen3ForCausalLM"}, embed, said=said, window=TOKENS),
    vaes=("AutoencoderKLFlux2",),
    licence="Apache-2.0 (FLUX.2-klein-base-4B; the 9B: FLUX non-commercial)",
    shape=shape,
    ask=ask,
    needs=("prompt",),
    label="t",
    hear=lambda t, dtype: (t.to(dtype) * 1000).double() / 1000,
    sigmas=True,
    shift=shift,
)
