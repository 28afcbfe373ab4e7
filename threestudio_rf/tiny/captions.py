"""Captions of the tiny world, with the view words of the 3D task in the training text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.world import COLOURS, VIEW_WORDS, WORDINGS, article

TEMPLATES: tuple[tuple[str, float], ...] = (
    ("{a} {colour} {shape}, {view} view", 0.66),
    ("{a} {colour} {shape}", 0.08),
    ("a photo of {a} {colour} {shape}, {view} view", 0.07),
    ("{colour} {shape}, {view} view", 0.05),
    ("a {shape}, {view} view", 0.04),
    ("", 0.10),
)
"""Wording and share; the last one is the dropped caption of classifier-free guidance."""
FOUR_WORDS = 0.3
"""Share of the captions that name the view by one of the four words, the others by octant and height."""


def caption(template: int, shape: int, colour: int, wording: int) -> str:
    """One caption from indices into TEMPLATES, SHAPES, COLOURS and WORDINGS."""
    name, word = list(COLOURS)[colour], WORDINGS[wording]
    text = TEMPLATES[template][0]
    return text.format(a=article(name), colour=name, shape=list(SHAPES)[shape], view=word)


def _ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    length = tokenizer.model_max_length
    out = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = out.input_ids
    return ids


@dataclass(frozen=True)
class CaptionTable:
    """Token ids (templates, shapes, colours, wordings, T) of every caption for one tokenizer."""

    ids: Tensor

    @staticmethod
    def of(tokenizer: Any) -> CaptionTable:
        """Tokenize every caption once."""
        sizes = (len(TEMPLATES), len(SHAPES), len(COLOURS), len(WORDINGS))
        texts = [caption(*index) for index in torch.cartesian_prod(*(torch.arange(n) for n in sizes)).tolist()]
        different = list(dict.fromkeys(texts))
        number = {text: i for i, text in enumerate(different)}
        rows = torch.tensor([number[text] for text in texts])
        return CaptionTable(_ids(tokenizer, different)[rows].reshape(*sizes, -1))

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        return self.ids[index]


def draw_templates(n: int, draw: Generator) -> Tensor:
    """Indices into TEMPLATES (n,) by their shares."""
    shares = torch.tensor([share for _, share in TEMPLATES])
    return torch.multinomial(shares, n, replacement=True, generator=draw)


def draw_wordings(view: Tensor, octant: Tensor, draw: Generator) -> Tensor:
    """Indices into WORDINGS (n,) for views of given view word and octant word, a share `FOUR_WORDS` the former."""
    short = torch.rand(len(view), generator=draw) < FOUR_WORDS
    return torch.where(short, view, len(VIEW_WORDS) + octant)
