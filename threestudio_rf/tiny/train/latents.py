"""Encoded images of the tiny world with their captions: what the embedded priors are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.tiny.train.captions import CaptionTable, draw_templates, draw_wordings
from threestudio_rf.tiny.train.training import device_of, half
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, Views, palette, random_backgrounds

OVERHEAD = 2.5
"""How much more often a view from above is drawn: it is one in fifteen of the cameras, but one in four of the words."""


class Latents(NamedTuple):
    """Encoded images: latents (N, C, h, w) in float16 and the indices (N,) of their shape, colour, view word and word
    of octant and height."""

    latent: Tensor
    shape: Tensor
    colour: Tensor
    view: Tensor
    octant: Tensor


class Batch(NamedTuple):
    """Clean latents (B, C, h, w) in float32, token ids (B, T) per tokenizer, and the rows (B,) they were taken from."""

    x0: Tensor
    ids: list[Tensor]
    rows: Tensor


@torch.no_grad()
def encode_world(vae: Any, world: Views, copies: int, seed: int, *, batch: int = 64) -> Latents:
    """Every view `copies` times, each time in another colour before another background; (z - shift) scale, with the
    encoder in bfloat16 (mean error 0.004 at deviation 1.3)."""
    parts = []
    config, n, device = vae.config, len(world.shape), device_of(vae)
    for copy in range(copies):
        draw = generator(seed, copy, "latents")
        colour = torch.randint(len(COLOURS), (n,), generator=draw)
        background = random_backgrounds(palette()[colour], draw)
        for start in range(0, n, batch):
            rows = torch.arange(start, min(n, start + batch))
            some = world.select(rows)
            image = some.images(palette()[colour[rows]], background[rows]) * 2 - 1
            image = image.to(device).contiguous(memory_format=torch.channels_last)
            with half(device):
                z = vae.encode(image).latent_dist.mode().float().cpu()
            latent = (z - config.shift_factor) * config.scaling_factor
            parts.append(Latents(latent.contiguous().half(), some.shape, colour[rows], some.view, some.octant))
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


class CaptionedLatents:
    """Random batches of latents with a random wording of their caption; `offset` is added to every latent."""

    def __init__(self, data: Latents, tokenizers: Sequence[Any], *, offset: float = 0.0) -> None:
        self.data, self.offset = data, offset
        self.tables = [CaptionTable(tokenizer) for tokenizer in tokenizers]
        self.share = torch.where(data.view == VIEW_WORDS.index("overhead"), OVERHEAD, 1.0)

    def draw(self, n: int, draw: Generator) -> Batch:
        """`n` of them, with replacement."""
        rows = torch.multinomial(self.share, n, replacement=True, generator=draw)
        x0, shape, colour, view, octant = (column[rows] for column in self.data)
        template, wording = draw_templates(n, draw), draw_wordings(view, octant, draw)
        ids = [table[template, shape, colour, wording] for table in self.tables]
        return Batch(x0.float() + self.offset, ids, rows)
