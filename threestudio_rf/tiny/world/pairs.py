"""Edits of the tiny world whose truth is known: a picture, what is asked, and the same view after the change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.tiny.world.shapes import SHAPES, TWELVE
from threestudio_rf.tiny.world.views import COLOURS, IMAGE_SIZE, View, compose, palette, prompt_of, render

EDITS = ("colour", "shape")
CONTRAST = 0.3


class Looks(NamedTuple):
    """N objects by index: shape and colour, each (N,)."""

    shape: Tensor
    colour: Tensor

    def prompts(self) -> list[str]:
        """Their captions without a view word."""
        names, colours = list(SHAPES), list(COLOURS)
        return [prompt_of(names[s], colours[c]) for s, c in zip(self.shape.tolist(), self.colour.tolist(), strict=True)]


class Pairs(NamedTuple):
    """N edits of one kind: pictures before and after (N, 3, H, W), prompts, what the result should be judged as, and
    the pixels (N, 1, H, W) that neither object touches."""

    before: Tensor
    after: Tensor
    source: list[str]
    target: list[str]
    wanted: Looks
    outside: Tensor

    def select(self, rows: slice) -> Pairs:
        """The edits of `rows`."""
        wanted = Looks(*(index[rows] for index in self.wanted))
        prompts = (self.source[rows], self.target[rows])
        return Pairs(self.before[rows], self.after[rows], *prompts, wanted, self.outside[rows])


def _other(index: Tensor, count: int, draw: Generator) -> Tensor:
    """Another index below `count` for each of (N,), uniformly."""
    return (index + torch.randint(1, count, index.shape, generator=draw)) % count


def _backgrounds(first: Tensor, second: Tensor, draw: Generator) -> Tensor:
    """Flat backgrounds (N, 3) that differ from both colours (N, 3)."""
    background = torch.rand(first.shape, generator=draw)
    for _ in range(64):
        gap = torch.minimum((background - first).norm(dim=-1), (background - second).norm(dim=-1))
        background = torch.where((gap < CONTRAST)[:, None], torch.rand(first.shape, generator=draw), background)
    return background


def _views(shape: Tensor, camera: Camera) -> View:
    """The true view of each object by its own camera."""
    solids = list(SHAPES.values())
    seen = [render(solids[s], camera.select([i])) for i, s in enumerate(shape.tolist())]
    return View(*(torch.cat(list(maps)) for maps in zip(*seen, strict=True)))


def held_out_pairs(n: int, seed: int, *, size: int = IMAGE_SIZE) -> dict[str, Pairs]:
    """n pictures, each with one edit of every kind in `EDITS`: another colour of the same shape, another shape in the
    same colour, seen by the same camera before the same background. No training draws from this stream."""
    draw = generator(seed, 0, "pairs")
    camera = random_views(n, draw, height=size, width=size)
    look = Looks(*(torch.randint(len(names), (n,), generator=draw) for names in (TWELVE, COLOURS)))
    changed = {
        "colour": look._replace(colour=_other(look.colour, len(COLOURS), draw)),
        "shape": look._replace(shape=_other(look.shape, len(TWELVE), draw)),
    }
    rgb = palette()
    background = _backgrounds(rgb[look.colour], rgb[changed["colour"].colour], draw)
    seen = _views(look.shape, camera)
    before = compose(seen, rgb[look.colour], background)
    found = {}
    for name, wanted in changed.items():
        after = _views(wanted.shape, camera)
        outside = (seen.mask <= 0) & (after.mask <= 0)
        truth = compose(after, rgb[wanted.colour], background)
        found[name] = Pairs(before, truth, look.prompts(), wanted.prompts(), wanted, outside)
    return found
