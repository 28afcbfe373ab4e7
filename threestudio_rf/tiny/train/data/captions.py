"""Captions of the tiny world, with the view words of the 3D task in the training text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, WORDINGS, article

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


class CaptionTable:
    """Token ids of captions for one tokenizer; each caption is tokenized when it is first asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, Tensor] = {}

    def __getitem__(self, index: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """Ids (B, T) for indices (B,) into TEMPLATES, SHAPES, COLOURS and WORDINGS."""
        texts = [caption(*row) for row in zip(*(column.tolist() for column in index), strict=True)]
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            length = self.tokenizer.model_max_length
            given: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
            ids = self.tokenizer(missing, return_tensors="pt", **given).input_ids
            self.known |= dict(zip(missing, ids, strict=True))
        return torch.stack([self.known[text] for text in texts])


SAID = torch.tensor([[f"{{{word}}}" in text for word in ("shape", "colour", "view")] for text, _ in TEMPLATES])
"""Whether a template names shape, colour and view (TEMPLATES, 3)."""


def told(template: Tensor, shape: Tensor, colour: Tensor, wording: Tensor) -> Tensor:
    """What captions of indices (B,) say of shape, colour and wording (B, 3), -1 for what they leave out."""
    return torch.stack((shape, colour, wording), dim=1).masked_fill(~SAID[template], -1)


def draw_templates(n: int, draw: Generator) -> Tensor:
    """Indices into TEMPLATES (n,) by their shares."""
    shares = torch.tensor([share for _, share in TEMPLATES])
    return torch.multinomial(shares, n, replacement=True, generator=draw)


def draw_wordings(view: Tensor, octant: Tensor, draw: Generator) -> Tensor:
    """Indices into WORDINGS (n,) for views of given view word and octant word, a share `FOUR_WORDS` the former."""
    short = torch.rand(len(view), generator=draw) < FOUR_WORDS
    return torch.where(short, view, len(VIEW_WORDS) + octant)
