"""Captions of the tiny world, with the view words of the 3D task in the training text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.world import COLOURS, VIEW_WORDS, article

TEMPLATES: tuple[tuple[str, float], ...] = (
    ("{a} {colour} {shape}, {view} view", 0.62),
    ("{a} {colour} {shape}", 0.10),
    ("a photo of {a} {colour} {shape}, {view} view", 0.08),
    ("{colour} {shape}, {view} view", 0.06),
    ("a {shape}, {view} view", 0.04),
    ("", 0.10),
)
"""Wording and share; the last one is the dropped caption of classifier-free guidance."""


def caption(template: int, shape: int, colour: int, view: int) -> str:
    """One caption from indices into TEMPLATES, SHAPES, COLOURS and VIEW_WORDS."""
    name, word = list(COLOURS)[colour], VIEW_WORDS[view]
    text = TEMPLATES[template][0]
    return text.format(a=article(name), colour=name, shape=list(SHAPES)[shape], view=word)


@dataclass(frozen=True)
class CaptionTable:
    """Token ids (templates, shapes, colours, views, T) of every caption for one tokenizer."""

    ids: Tensor

    @staticmethod
    def of(tokenizer: Any) -> CaptionTable:
        """Tokenize every caption once."""
        sizes = (len(TEMPLATES), len(SHAPES), len(COLOURS), len(VIEW_WORDS))
        texts = [caption(*index) for index in torch.cartesian_prod(*(torch.arange(n) for n in sizes)).tolist()]
        out = tokenizer(
            texts,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return CaptionTable(out.input_ids.reshape(*sizes, -1))

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        return self.ids[index]


def draw_templates(n: int, draw: Generator) -> Tensor:
    """Indices into TEMPLATES (n,) by their shares."""
    shares = torch.tensor([share for _, share in TEMPLATES])
    return torch.multinomial(shares, n, replacement=True, generator=draw)
