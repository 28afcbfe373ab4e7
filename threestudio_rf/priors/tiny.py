"""The embedded prior: a small SD3 trained by this project's own command, in threestudio_rf/weights.

It knows the words of its training captions and no others; `unknown_words` finds those of a prompt that it never saw.
This file imports neither torch's neighbours nor the weights until they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import torch

from threestudio_rf.priors.architecture import END_OF_WORD, byte_alphabet
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder import read_json
from threestudio_rf.priors.sd3 import SD3Prior, load_sd3

NAME = "tiny-sd3"
LICENCE = "Apache-2.0 (trained by this project)"


def weights_folder() -> Path:
    """The folder of everything that ships as weights."""
    return Path(str(files("threestudio_rf"))) / "weights"


def verify_weights(part: str = "", *, folder: Path | None = None) -> list[str]:
    """What is wrong with the shipped weights, one line each, by SHA256SUMS ("<sha256>  <path>" per line); [] if whole.

    `part` limits it to one subfolder ("tiny-sd3").
    """
    folder = weights_folder() if folder is None else folder
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return [f"{sums} is missing"]
    found, seen = [], 0
    for line in sums.read_text("utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        if not name or not Path(name).is_relative_to(part):
            continue
        seen += 1
        if not (folder / name).is_file():
            found.append(f"{folder / name} is missing")
        elif hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            found.append(f"{folder / name} differs from what was shipped (sha256)")
    return found if seen else [f"{sums} lists nothing{f' of {part}' if part else ''}"]


def load_tiny_sd3(
    *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, cache: Path | None = None
) -> SD3Prior:
    """The embedded prior, after its sha256 sums are compared. PriorError when a file is missing or differs."""
    faults = verify_weights(NAME)
    if faults:
        raise PriorError(f"the embedded prior is not whole: {'; '.join(faults[:3])}; reinstall it or train it again")
    return load_sd3(weights_folder() / NAME, device=device, dtype=dtype, cache=cache, name="tiny_sd3", licence=LICENCE)


def known_words(folder: Path | None = None) -> list[str]:
    """Words of more than one letter that a tokenizer of `architecture.make_tokenizer` knows, in the order given to it.

    `folder` is the prior's; the embedded one by default.
    """
    folder = weights_folder() / NAME if folder is None else folder
    try:
        vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text("utf-8"))
    except OSError:
        vocabulary = read_json(folder / "tokenizer/tokenizer.json")["model"]["vocab"]
    letters = {symbol: byte for byte, symbol in byte_alphabet().items()}
    words = [token[: -len(END_OF_WORD)] for token in vocabulary if token.endswith(END_OF_WORD)]
    return [bytes(letters[symbol] for symbol in word).decode() for word in words if len(word) > 1]


def unknown_words(prompt: str, folder: Path | None = None) -> list[str]:
    """Words of `prompt` that the prior was never trained on, each once, in their order."""
    words = re.findall(r"[^\W\d_]{2,}", unicodedata.normalize("NFC", prompt).lower())
    known = set(known_words(folder))
    return [word for word in dict.fromkeys(words) if word not in known]
