"""Conditions kept on disk: one safetensors file per text, so text encoders are loaded once per prompt and machine.

A file is named by sha256 of (model, revision, dtype, text). It is written under another name, flushed and renamed, so
a reader sees all of it or nothing; a broken file counts as absent. Never torch.save or torch.load.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from threestudio_rf.core.files import write_files
from threestudio_rf.priors.base import Condition

DIMENSIONS = {"prompt": 2, "pooled": 1, "mask": 1}


def is_text(tensors: dict[str, Tensor]) -> bool:
    """Whether these are an embedded text: finite fractions `prompt` (T, D) and maybe `pooled` (P,), truth values `mask`
    (T,) of the tokens that count."""
    return "prompt" in tensors and all(
        DIMENSIONS.get(name) == x.ndim
        and (x.dtype == torch.bool if name == "mask" else x.is_floating_point() and bool(x.isfinite().all()))
        for name, x in tensors.items()
    )


class ConditionCache:
    """Folder of embedded texts for one (model, revision, dtype); `folder` None remembers in memory only."""

    def __init__(self, folder: Path | None, model: str, revision: str, dtype: str) -> None:
        self.folder, self.key = folder, (model, revision, dtype)
        self.memory: dict[str, dict[str, Tensor]] = {}

    def file(self, text: str) -> Path | None:
        """Where the tensors of `text` are kept on disk; None when they are remembered in memory only."""
        if self.folder is None:
            return None
        name = hashlib.sha256(json.dumps([*self.key, text]).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def get(self, text: str) -> dict[str, Tensor] | None:
        """Tensors of `text`, without leading dimension, or None."""
        file = self.file(text)
        if text not in self.memory and file is not None and file.is_file():
            try:
                found = load(file.read_bytes())
            except (OSError, SafetensorError):
                return None
            if not is_text(found):
                return None
            self.memory[text] = found
        return self.memory.get(text)

    def put(self, text: str, tensors: dict[str, Tensor]) -> None:
        """Remember the tensors of `text`, without leading dimension; a warning when the file cannot be written."""
        self.memory[text] = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        file = self.file(text)
        if file is None:
            return
        try:
            write_files({file: save(self.memory[text])})
        except OSError as error:
            warnings.warn(f"embedded texts are not kept: cannot write {file.parent}: {error.strerror}", stacklevel=2)

    def embed(self, texts: list[str], encode: Callable[[list[str]], list[dict[str, Tensor]]]) -> Condition:
        """Condition of `texts` on the CPU; those that are not known yet go through `encode`, each once."""
        new = [text for text in dict.fromkeys(texts) if self.get(text) is None]
        if new:
            for text, tensors in zip(new, encode(new), strict=True):
                self.put(text, tensors)
        return self.condition(texts)

    def condition(self, texts: list[str]) -> Condition:
        """Condition of texts that are all known; KeyError for one that is not."""
        rows = [self.memory[text] for text in texts]
        return Condition({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
