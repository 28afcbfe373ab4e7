"""How the pipelines of diffusers are run beside our adapters: what differs from one to the other, as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def opened(kind: str, folder: Path, **settings: Any) -> Any:
    """The prior of a folder, by the application's own table; its pictures have 64 pixels."""
    from threestudio_rf.app.build.prior import build_prior
    from threestudio_rf.app.settings.groups import PriorConfig
    from threestudio_rf.priors.facts import FACTS

    settings = {"cache": str(folder.parent / "texts")} | settings
    if "size" in FACTS[kind].reads:
        settings = {"size": 64} | settings
    return build_prior(PriorConfig(name=kind, path=str(folder), **settings), torch.device("cpu"))


def same(x: Tensor) -> Tensor:
    """Latents as they are."""
    return x


@dataclass(frozen=True)
class Case:
    """One kind of folder.

    cfg     the guidance scale of our run
    given   what its pipeline is given for it, beside size, steps and texts
    packed  our latents -> its own
    opened  (its own, pipeline) -> ours
    shown   what it gives as a picture -> that in [0, 1]
    clock   the module that turns what the network heard into an embedding, and that number into t
    free    names that its pipeline must be given as None to load
    """

    clock: str
    clean: Callable[[Tensor], Tensor]
    cfg: float = 3.0
    given: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0})
    packed: Callable[[Tensor], Tensor] = same
    opened: Callable[[Tensor, Any], Tensor] = lambda x, pipe: x
    shown: Callable[[Tensor], Tensor] = same
    free: tuple[str, ...] = ()


def guided(**more: Any) -> dict[str, Any]:
    """A guidance scale of 3 and more."""
    return {"guidance_scale": 3.0, **more}


def packed(x: Tensor) -> Tensor:
    """(B, C, h, w) -> 2 x 2 latents as one token (B, h w / 4, 4 C)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, pipe: Any, wide: int = 1) -> Tensor:
    """The inverse for latents that are `wide` times as wide as high."""
    b, n, c = tokens.shape
    h = round((n / wide) ** 0.5)
    w = wide * h
    return tokens.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 2 * h, 2 * w)


def normalised(z: Tensor, pipe: Any) -> Tensor:
    """FLUX.2's latents as its network reads them: 2 x 2 as channels, by the batch norm of its VAE."""
    b, c, h, w = z.shape
    z = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    return nn.functional.batch_norm(z, pipe.vae.bn.running_mean, pipe.vae.bn.running_var, eps=pipe.vae.bn.eps)


def pixels(x: Tensor) -> Tensor:
    """A picture in [-1, 1]."""
    return (x / 2 + 0.5).clamp(0, 1)


BINS = {"use_resolution_binning": False}
CASES: dict[str, Case] = {
    "sd": Case("time_proj", lambda k: (k + 1) / 1000),
    "sdxl": Case("time_proj", lambda k: (k + 1) / 1000),
    "sd3": Case(
        "time_text_embed.time_proj",
        lambda n: n / 1000,
        given=guided(max_sequence_length=0),
        free=("text_encoder_3", "tokenizer_3"),
    ),
    "sana": Case("time_embed.emb.time_proj", lambda n: n / 500, given=guided(**BINS)),
    "prx": Case("", lambda t: t, given=guided(**BINS)),
    "flux2_klein": Case(
        "time_guidance_embed.time_proj",
        lambda n: n / 1000,
        given=guided(),
        opened=normalised,
    ),
    "zimage": Case("t_embedder", lambda n: 1 - n / 1000, given={"guidance_scale": 2.0}),
    "qwen_image": Case(
        "time_text_embed.time_proj",
        lambda t: t,
        given={"true_cfg_scale": 3.0, "negative_prompt": ""},
        packed=packed,
        opened=unpacked,
    ),
    "prx_pixel": Case("", lambda t: t, given=guided(**BINS), packed=lambda x: 2 * x, shown=pixels),
    "chroma": Case("time_text_embed.time_proj", lambda n: n / 1000, given=guided(), packed=packed, opened=unpacked),
    "pixart": Case("adaln_single.emb.time_proj", lambda k: (k + 1) / 1000, given=guided(**BINS)),
    "lumina2": Case("time_caption_embed.time_proj", lambda t: 1 - t, given=guided()),
}
