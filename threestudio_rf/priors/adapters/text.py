"""Texts embedded by a pipeline of diffusers that holds its text encoders and nothing else."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.collector import uncollected
from threestudio_rf.priors.folder.changes import UNCHANGED, Changes
from threestudio_rf.priors.folder.layout import Table, read_json
from threestudio_rf.priors.folder.load import load_part, quiet
from threestudio_rf.priors.text import POSITIONS, digest, load_tokenizer

Row = dict[str, Tensor]


def by_name(name: str) -> Any:
    """The class of transformers of that name."""
    import transformers

    return getattr(transformers, name)


@dataclass(frozen=True)
class TextSide:
    """The text side of a pipeline.

    encoders  part -> class of transformers
    embed     (pipeline, text, device) -> tensors of that text, without leading dimension
    said      (tokenizer, text) -> what its tokenizer is given
    window    tokens of that which are read; None: the tokenizer's model_max_length
    limit     the entry of model_index.json that may hold another window
    found     a class of transformers by its name
    """

    encoders: Mapping[str, str]
    embed: Callable[[Any, str, torch.device], Row]
    said: Callable[[Any, str], str] = lambda tokenizer, text: text
    window: int | None = None
    limit: str = ""
    found: Callable[[str], Any] = by_name


def tokenizer_of(encoder: str) -> str:
    """The part that makes tokens for a text encoder's."""
    return encoder.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class PipelineText:
    """Where the text encoders are and how they are read; nothing is loaded before it is asked for."""

    folder: Path
    pipeline: str
    side: TextSide
    dtype: torch.dtype
    device: torch.device
    variant: str | None = None
    changes: Changes = UNCHANGED

    def tokenizer(self, encoder: str) -> Any:
        """PriorError when its files are broken."""
        import transformers

        name = self.side.encoders[encoder]
        cls = transformers.CLIPTokenizer if name.startswith("CLIP") else transformers.AutoTokenizer
        positions = POSITIONS if name.startswith("CLIP") else None
        return load_tokenizer(cls, self.folder / tokenizer_of(encoder), self.folder / encoder, positions)

    @uncollected()
    @torch.no_grad()
    def embed(self, texts: list[str]) -> list[Row]:
        """The tensors of each text, on the CPU, each text by itself. Warns once of words that are not read."""
        cut = [tail for text in texts if (tail := self.excess(text))]
        if cut:
            rest = f" (and {len(cut) - 1} more texts)" if len(cut) > 1 else ""
            warnings.warn(f"the prompt is longer than what is read of it; left out: {cut[0]!r}{rest}", stacklevel=5)
        pipe = self._pipeline()
        with quiet():
            rows = [self.side.embed(pipe, text, self.device) for text in texts]
        return [{name: x.cpu() for name, x in row.items()} for row in rows]

    def excess(self, text: str) -> str:
        """The end of `text` that is not read, "" when it is read whole."""
        tokenizer = self._first
        with quiet():
            ids = tokenizer(self.side.said(tokenizer, text)).input_ids
        window = self.side.window or int(tokenizer.model_max_length)
        if self.side.limit:
            window = Table(self.folder / "model_index.json").whole(self.side.limit, window)
        return str(tokenizer.decode(ids[window - 1 :], skip_special_tokens=True)).strip() if len(ids) > window else ""

    def revision(self) -> str:
        """Hash of the text parts' files, and what changes them."""
        names = [part for name in self.side.encoders for part in (tokenizer_of(name), name)]
        return digest(self.folder, names) + self.changes.revision(self.folder, self.side.encoders)

    @cached_property
    def _first(self) -> Any:
        return self.tokenizer(next(iter(self.side.encoders)))

    def _pipeline(self) -> Any:
        """The pipeline with its settings of model_index.json, and no part beside these."""
        import diffusers

        made = getattr(diffusers, self.pipeline)
        index = read_json(self.folder / "model_index.json")
        parts: dict[str, Any] = {}
        for name, cls in self.side.encoders.items():
            encoder = load_part(self.side.found(cls), self.folder / name, dtype=self.dtype, variant=self.variant)
            self.changes.apply(encoder, self.folder / name)
            parts |= {name: encoder.to(self.device), tokenizer_of(name): self.tokenizer(name)}
        known = [name for name in inspect.signature(made.__init__).parameters if name != "self"]
        plain = {name: index[name] for name in known if not isinstance(index.get(name, []), list)}
        return made(**dict.fromkeys(_parts_of(made)) | plain | parts)


def _parts_of(made: Any) -> list[str]:
    """The parts that a pipeline's constructor asks for."""
    parameters = inspect.signature(made.__init__).parameters.items()
    return [name for name, one in parameters if name != "self" and one.default is inspect.Parameter.empty]


def unrepaired(pipe: Any) -> None:
    """Where ftfy is missing, let the text cleaning of `pipe`'s module leave broken characters as they are; plain text
    is the same without it. Warns once."""
    module: Any = sys.modules[type(pipe).__module__]
    if find_spec("ftfy") is None and "ftfy" not in vars(module):
        warnings.warn("pip install ftfy: without it broken characters of a prompt are not repaired", stacklevel=2)
        module.ftfy = SimpleNamespace(fix_text=lambda text: text)
