"""The embedded priors: a small SD3 and three small SDs, trained by this project's own commands.

They share one first stage: its weights lie in tiny-sd3, the other folders link to them. They know the words of their
training captions and no others; `unknown_words` finds those of a prompt that they never saw. This file imports neither
torch's neighbours nor the weights until they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import torch

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.facts import FACTS
from threestudio_rf.priors.folder.architecture import END_OF_WORD, byte_alphabet
from threestudio_rf.priors.folder.layout import read_json
from threestudio_rf.priors.folder.parts import PLAIN, PartOptions
from threestudio_rf.priors.sd import SDPrior, load_sd
from threestudio_rf.priors.sd3 import SD3Prior, load_sd3

EMBEDDED: tuple[str, ...] = tuple(name for name, facts in FACTS.items() if facts.source == "embedded")
"""Their names on the command line; their folders have - for _."""
NAME = "tiny-sd3"
LICENCE = "Apache-2.0 (trained by this project)"


def weights_folder() -> Path:
    """The folder of everything that ships as weights."""
    return Path(str(files("threestudio_rf"))) / "weights"


def verify_weights(part: str = "", *, folder: Path | None = None) -> list[str]:
    """What is wrong with the shipped weights, one line each, by SHA256SUMS ("<sha256>  <path>" per line); [] if whole.

    `part` limits it to one subfolder ("tiny-sd3") or file. A link that arrived as a text file is told as such.
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
            found.append(f"{folder / name} {_why_different(folder / name)}")
    return found if seen else [f"{sums} lists nothing{f' of {part}' if part else ''}"]


def _why_different(file: Path) -> str:
    """Why a file is not the shipped one: git without symbolic links writes a link's target into a text file."""
    content = file.read_bytes() if file.stat().st_size < 300 else b""
    if content.startswith(b"../") and content.strip().endswith(b".safetensors"):
        return (
            "is a symbolic link that git wrote as a text file: run `git config core.symlinks true`, delete the file "
            f"and run `git checkout -- {file.name}` in its folder"
        )
    return "differs from what was shipped (sha256)"


def whole_folder(name: str) -> Path:
    """Folder of the embedded prior `name` after its sha256 sums are compared. PriorError when it is not there, or a
    file is missing or differs."""
    folder = weights_folder() / name.replace("_", "-")
    if name not in EMBEDDED or not folder.is_dir():
        there = [other for other in EMBEDDED if (weights_folder() / other.replace("_", "-")).is_dir()]
        raise PriorError(
            f"there is no embedded prior {name} ({folder} is missing): reinstall the package or train it by "
            f"task=train_tiny; those that are there: {', '.join(there) or 'none'}"
        )
    faults = verify_weights(folder.name)
    if faults:
        raise PriorError(
            f"the embedded prior {name} is not whole: {'; '.join(faults[:3])}; else reinstall it or train it again"
        )
    return folder


def load_tiny(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: Path | None = None,
    mirror_time: bool = False,
    options: PartOptions = PLAIN,
) -> SD3Prior | SDPrior:
    """The embedded prior `name`, one of `EMBEDDED`; PriorError as `whole_folder`. `mirror_time` as in `sd.py`."""
    if name == "tiny_sd3" and not mirror_time:
        return load_tiny_sd3(device=device, dtype=dtype, cache=cache, options=options)
    return load_sd(
        whole_folder(name),
        device=device,
        dtype=dtype,
        kind="flow" if name == "tiny_instaflow" else "auto",
        mirror_time=mirror_time,
        cache=cache,
        name=name,
        licence=LICENCE,
        options=options,
    )


def load_tiny_sd3(
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    cache: Path | None = None,
    options: PartOptions = PLAIN,
) -> SD3Prior:
    """The embedded SD3."""
    folder = whole_folder("tiny_sd3")
    return load_sd3(folder, device=device, dtype=dtype, cache=cache, name="tiny_sd3", licence=LICENCE, options=options)


def known_words(folder: Path | None = None) -> list[str]:
    """Words of more than one letter that a tokenizer of `architecture.make_tokenizer` knows, in the order given to it.

    `folder` is the prior's; that of tiny_sd3 by default.
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
