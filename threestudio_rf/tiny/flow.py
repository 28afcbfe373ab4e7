"""The embedded SD3: a rectified flow (Liu et al. 2022; Esser et al. 2024) on latents of the tiny world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.convert import join, noise
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.core.times import draw as draw_times
from threestudio_rf.tiny.captions import CaptionTable, draw_templates
from threestudio_rf.tiny.stage import palette
from threestudio_rf.tiny.world import COLOURS, Views, random_backgrounds


class Latents(NamedTuple):
    """Encoded images: latents (N, C, h, w) in float16 and the indices (N,) of their shape, colour and view word."""

    latent: Tensor
    shape: Tensor
    colour: Tensor
    view: Tensor


@torch.no_grad()
def encode_world(vae: Any, world: Views, copies: int, seed: int, *, batch: int = 64) -> Latents:
    """Every view `copies` times, each time in another colour before another background; (z - shift) scale."""
    parts = []
    config, n = vae.config, len(world.shape)
    for copy in range(copies):
        draw = generator(seed, copy, "latents")
        colour = torch.randint(len(COLOURS), (n,), generator=draw)
        background = random_backgrounds(palette()[colour], draw)
        for start in range(0, n, batch):
            rows = torch.arange(start, min(n, start + batch))
            some = world.select(rows)
            image = some.images(palette()[colour[rows]], background[rows]) * 2 - 1
            image = image.contiguous(memory_format=torch.channels_last)
            latent = (vae.encode(image).latent_dist.mode() - config.shift_factor) * config.scaling_factor
            parts.append(Latents(latent.contiguous().half(), some.shape, colour[rows], some.view))
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


def embed_tokens(encoders: Sequence[Any], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """SD3's text input from token ids (B, T) per encoder: joined hidden_states[-2] (B, T, D) and pooled (B, P)."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder, tokens in zip(encoders, ids, strict=True)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


class FlowPart:
    """Velocity matching |u_hat(x_t, t, caption) - (eps - x0)|^2 with logit-normal t; text encoders train along."""

    name = "sd3"

    def __init__(
        self,
        transformer: nn.Module,
        encoders: Sequence[nn.Module],
        tokenizers: Sequence[Any],
        data: Latents,
        *,
        batch: int = 128,
        autocast: bool = True,
    ) -> None:
        self.modules = nn.ModuleDict({"transformer": transformer, "one": encoders[0], "two": encoders[1]})
        self.transformer, self.encoders = transformer, list(encoders)
        self.tables = [CaptionTable.of(tokenizer) for tokenizer in tokenizers]
        self.data, self.batch, self.autocast = data, batch, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the velocity, over elements and batch."""
        n = self.batch
        rows = torch.randint(len(self.data.shape), (n,), generator=draw)
        x0, shape, colour, view = (column[rows] for column in self.data)
        words = draw_templates(n, draw)
        ids = [table[words, shape, colour, view] for table in self.tables]
        t = draw_times(n, draw, t_min=0.0, t_max=1.0, law="logit_normal")
        eps = torch.randn(x0.shape, generator=draw)
        level = rectified_flow(t)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            hidden, pooled = embed_tokens(self.encoders, ids)
            u_hat = self.transformer(
                hidden_states=noise(x0.float(), eps, level),
                timestep=1000 * t,
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        error = (u_hat.float() - join("flow", x0.float(), eps, level)).square().mean(dim=(1, 2, 3))
        late = t > 0.5
        return error.mean(), {"noisy": error[late].mean().item(), "clean": error[~late].mean().item()}
