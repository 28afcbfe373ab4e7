"""Encoded images of the tiny world with their captions: what the embedded priors are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.level import Level
from threestudio_rf.core.random import generator
from threestudio_rf.priors.views import OCTANT_WORDS
from threestudio_rf.tiny.train.data.captions import CaptionTable, draw_templates, draw_wordings, told
from threestudio_rf.tiny.train.training import device_of, half
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, Views, palette, random_backgrounds

OVERHEAD = 2.5
"""How much more often a view from above is drawn: it is one in fifteen of the cameras, but one in four of the words."""
OFTEN = {"table": 3.0, "chair": 2.5, "house": 2.5, "castle": 2.5, "boat": 2.5, "car": 2.0, "duck": 2.0, "cube": 1.5}
OFTEN |= {"rocket": 1.5, "cup": 1.5, "lamp": 1.5, "star": 1.25}
OFTEN |= dict.fromkeys(("ball", "cone", "cylinder", "donut", "mushroom", "snowman"), 0.6)
"""How often a shape is drawn, against 1 for the others: the more the further its samples were below their bound, or
seen from another octant than the caption's (docs/tiny_world.md)."""
MATES = 20
"""About how many views of one shape and octant share colour and background."""


class Latents(NamedTuple):
    """Encoded images: latents (N, C, h, w) in float16 and the indices (N,) of their shape, colour, view word, word
    of octant and height, and of the group of views that differ from each other by their camera only."""

    latent: Tensor
    shape: Tensor
    colour: Tensor
    view: Tensor
    octant: Tensor
    group: Tensor


class Batch(NamedTuple):
    """Clean latents (B, C, h, w) in float32, token ids (B, T) per tokenizer, the rows (B,) they were taken from, and
    what their captions say (`told`, (B, 3))."""

    x0: Tensor
    ids: list[Tensor]
    rows: Tensor
    told: Tensor


@torch.no_grad()
def encode_world(vae: Any, world: Views, copies: int, seed: int, *, batch: int = 64) -> Latents:
    """Every view `copies` times, each time in another group (`grouped`) with a colour and a background of its own;
    (z - shift) scale, with the encoder in bfloat16 (mean error 0.004 at deviation 1.3), or where `vae` is None the
    picture itself in [-1, 1]."""
    parts, first = [], 0
    n, device = len(world.shape), torch.device("cpu") if vae is None else device_of(vae)
    for copy in range(copies):
        draw = generator(seed, copy, "latents")
        group = grouped(world.shape * len(OCTANT_WORDS) + world.octant, draw)
        named = torch.randint(len(COLOURS), (int(group.max()) + 1,), generator=draw)
        colour, background = named[group], random_backgrounds(palette()[named], draw)[group]
        group, first = group + first, first + len(named)
        for start in range(0, n, batch):
            rows = torch.arange(start, min(n, start + batch))
            some = world.select(rows)
            image = some.to(device).images(palette()[colour[rows]].to(device), background[rows].to(device)) * 2 - 1
            latent = image if vae is None else _encoded(vae, image)
            told = some.shape, colour[rows], some.view, some.octant, group[rows]
            parts.append(Latents(latent.contiguous().half(), *told))
    return Latents(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _encoded(vae: Any, image: Tensor) -> Tensor:
    config = vae.config
    with half(image.device):
        z = vae.encode(image.contiguous(memory_format=torch.channels_last)).latent_dist.mode().float().cpu()
    latent: Tensor = (z - config.shift_factor) * config.scaling_factor
    return latent


def grouped(key: Tensor, draw: Generator, *, size: int = MATES) -> Tensor:
    """Numbers (N,) of random groups of about `size` rows with one key (N,), from 0 on."""
    order = torch.randperm(len(key), generator=draw)
    order = order[torch.argsort(key[order], stable=True)]
    counts = key.bincount()
    rank = torch.empty_like(key)
    rank[order] = torch.arange(len(key)) - (counts.cumsum(0) - counts)[key[order]]
    parts = (counts / size).round().long().clamp_min(1) * (counts > 0)
    return (parts.cumsum(0) - parts)[key] + rank % parts[key]


def members_of(group: Tensor) -> Tensor:
    """The rows (G, M) of every group (N,), -1 where a group has fewer than the largest."""
    counts = group.bincount()
    order = torch.argsort(group, stable=True)
    members = torch.full((len(counts), int(counts.max())), -1)
    members[group[order], torch.arange(len(group)) - (counts.cumsum(0) - counts)[group[order]]] = order
    return members


class CaptionedLatents:
    """Random batches of latents with a random wording of their caption; `offset` is added to every latent. The latents
    lie on `device`, what is told of them on the CPU."""

    def __init__(
        self, data: Latents, tokenizers: Sequence[Any], *, offset: float = 0.0, device: torch.device | str = "cpu"
    ) -> None:
        self.data, self.offset = data._replace(latent=data.latent.to(device)), offset
        self.tables = [CaptionTable(tokenizer) for tokenizer in tokenizers]
        often = torch.tensor([OFTEN.get(name, 1.0) for name in SHAPES])[data.shape]
        self.share = torch.where(data.view == VIEW_WORDS.index("overhead"), OVERHEAD, 1.0) * often
        self.members = members_of(data.group)

    def draw(self, n: int, draw: Generator) -> Batch:
        """A batch of `n` random latents, drawn with replacement."""
        rows = torch.multinomial(self.share, n, replacement=True, generator=draw)
        x0 = self.data.latent[rows.to(self.data.latent.device)]
        shape, colour, view, octant = (column[rows] for column in self.data[1:-1])
        template, wording = draw_templates(n, draw), draw_wordings(view, octant, draw)
        ids = [table[template, shape, colour, wording] for table in self.tables]
        return Batch(x0.float() + self.offset, ids, rows, told(template, shape, colour, wording))

    def settled(self, x_t: Tensor, level: Level, rows: Tensor) -> Tensor:
        """The mean (B, C, h, w) of the clean latents in the groups of `rows` (B,), given x_t (B, C, h, w) at a level.

        Every member z of a group is weighed by N(x_t; alpha z, sigma^2 I), as in StableVM (arXiv 2602.05435). A row is
        one draw from that posterior, so regression on the mean has the same minimum with less noise. The members of a
        group share their caption; a caption that says less is shared by several groups, whose means average to its own.
        """
        members = self.members[self.data.group[rows]].to(x_t.device)
        z = self.data.latent[members.clamp_min(0)].float() + self.offset
        alpha, sigma = (value.flatten()[:, None] for value in level)
        z_flat, x_flat = z.flatten(2), x_t.float().flatten(1)
        nearness = 2 * alpha * torch.einsum("bmd,bd->bm", z_flat, x_flat) - alpha**2 * z_flat.square().sum(2)
        nearness = nearness.masked_fill(members < 0, -torch.inf)
        share = (nearness / (2 * sigma**2)).softmax(1)
        return torch.einsum("bm,bmd->bd", share, z_flat).view_as(x_t)
