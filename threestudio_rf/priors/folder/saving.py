"""A pipeline of trained parts as a folder that diffusers loads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LARGEST = "15MB"
"""Of a file of weights; larger parts become numbered files and an index, which diffusers joins again."""


def stored(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of `module` in eval mode, on the CPU, in `dtype`."""
    return nn.Module.to(copy.deepcopy(module), device="cpu", dtype=dtype).eval()


def save(pipe: DiffusionPipeline, folder: Path) -> Path:
    """Write a pipeline in files of `LARGEST` at most and return its folder.

    Every tokenizer is written as vocab.json and merges.txt too, the form older readers expect. Text encoders say
    float32, else transformers would compute in the dtype they are stored in; the first stage keeps no path of the
    machine it was trained on.
    """
    pipe.save_pretrained(folder, safe_serialization=True, max_shard_size=LARGEST)
    for part in sorted(path.name for path in folder.iterdir()):
        if part.startswith("tokenizer"):
            write_vocabulary(folder / part)
        elif part.startswith("text_encoder"):
            amend(folder / part / "config.json", {"dtype": "float32"})
        elif part == "vae":
            amend(folder / part / "config.json", {"_name_or_path": ""})
    return folder


def amend(file: Path, values: dict[str, object]) -> None:
    """Set entries of a JSON table on disk."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values, indent=2) + "\n", "utf-8")


def write_vocabulary(folder: Path) -> None:
    """Write a tokenizer's vocab.json and merges.txt beside its tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
