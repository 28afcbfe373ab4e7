"""The text sides of SD and SD3: encoders loaded alone, one after the other, and freed before the network.

SD's is equal to StableDiffusionPipeline.encode_prompt bit for bit: last_hidden_state, after the final norm.

SD3's is equal to StableDiffusion3Pipeline.encode_prompt bit for bit: both CLIP encoders give hidden_states[-2], joined
and padded with zeros to the width of the joint attention; T5's tokens follow, or as many zero tokens where it is
missing; the pooled vector is both projections joined.

Every text is embedded by itself, so it does not depend on the others.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.core.collector import uncollected
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.changes import UNCHANGED, Changes
from threestudio_rf.priors.folder.layout import Table, is_number
from threestudio_rf.priors.folder.load import in_one_line, load_part, quiet

TOKENIZER, ENCODER = "tokenizer", "text_encoder"
POSITIONS = 77
"""Tokens that a CLIP reads whose config does not say so."""
CLIPS = ((TOKENIZER, ENCODER), ("tokenizer_2", "text_encoder_2"))
T5 = ("tokenizer_3", "text_encoder_3")


def load_tokenizer(cls: Any, folder: Path, encoder: Path, positions: int | None = POSITIONS) -> Any:
    """A tokenizer of transformers from its folder, which gives no token that its `encoder` does not know, and no more
    of them than that has positions: `positions` where it does not say how many, None where it has none. PriorError
    when its files are missing or broken."""
    config = Table(encoder / "config.json")
    if not folder.is_dir():
        raise PriorError(
            f"{folder} is missing: the folder of the prior is not whole, its text encoder needs a tokenizer"
        )
    try:
        with quiet():
            tokenizer = cls.from_pretrained(str(folder), local_files_only=True)
            words = len(tokenizer)
    except Exception as error:  # the library raises whatever wrong files lead to
        raise PriorError(f"{folder}: the tokenizer cannot be loaded: {in_one_line(error)}") from None
    known = config.whole("vocab_size", words)
    if words > known:
        raise PriorError(f"{folder} has {words} tokens, its encoder {encoder.name} knows {known}")
    if positions is not None:
        most, stated = config.whole("max_position_embeddings", positions, low=3), tokenizer.model_max_length
        tokenizer.model_max_length = min(most, int(stated)) if is_number(stated) and stated >= 3 else most
    return tokenizer


def window(tokenizer: Any) -> int:
    """Tokens that CLIP reads, begin and end included: 77 for released weights."""
    return int(tokenizer.model_max_length)


def excess(text: str, tokenizer: Any) -> str:
    """The end of `text` that CLIP's window cuts off, "" when it is read whole."""
    with quiet():
        ids = tokenizer(text).input_ids
    return str(tokenizer.decode(ids[window(tokenizer) - 1 : -1])) if len(ids) > window(tokenizer) else ""


def warn_cut(texts: list[str], tokenizer: Any) -> None:
    """One warning for all texts that are longer than CLIP's window, with the end that is left out of the first."""
    cut = [tail for text in texts if (tail := excess(text, tokenizer))]
    if cut:
        rest = f" (and {len(cut) - 1} more texts)" if len(cut) > 1 else ""
        warnings.warn(
            f"the prompt is longer than the {window(tokenizer)} tokens that CLIP reads; left out: {cut[0]!r}{rest}",
            stacklevel=5,
        )


def tokenize(tokenizer: Any, text: str, length: int, device: torch.device) -> Any:
    """input_ids and attention_mask, (1, length), of one text, padded or cut to `length` tokens."""
    with quiet():
        out = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return out.to(device)


def digest(folder: Path, parts: Sequence[str]) -> str:
    """Hash over names, sizes and mtimes of the files of some parts and the content of their JSON."""
    found = hashlib.sha256()
    for name in parts:
        for file in sorted(path for path in (folder / name).glob("*") if path.is_file()):
            stat = file.stat()
            found.update(f"{name}/{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
            if file.suffix == ".json":
                found.update(file.read_bytes())
    return found.hexdigest()


@dataclass(frozen=True)
class SDText:
    """Where SD's text encoder is and how it is read; nothing is loaded before it is asked for."""

    folder: Path
    dtype: torch.dtype
    device: torch.device
    variant: str | None = None
    changes: Changes = UNCHANGED

    def tokenizer(self) -> Any:
        """PriorError when its files are broken."""
        from transformers import CLIPTokenizer

        return load_tokenizer(CLIPTokenizer, self.folder / TOKENIZER, self.folder / ENCODER)

    @uncollected()
    @torch.no_grad()
    def embed(self, texts: list[str]) -> list[dict[str, Tensor]]:
        """For each text `prompt` (T, width), on the CPU. Warns once of words CLIP does not read."""
        from transformers import CLIPTextModel

        tokenizer = self.tokenizer()
        warn_cut(texts, tokenizer)
        encoder = load_part(CLIPTextModel, self.folder / ENCODER, dtype=self.dtype, variant=self.variant)
        self.changes.apply(encoder, self.folder / ENCODER)
        encoder = encoder.to(self.device)
        masked = bool(getattr(encoder.config, "use_attention_mask", False))
        rows = []
        for text in texts:
            tokens = tokenize(tokenizer, text, window(tokenizer), self.device)
            out = encoder(tokens.input_ids, attention_mask=tokens.attention_mask if masked else None)
            rows.append({"prompt": out[0][0].cpu()})
        return rows

    def revision(self) -> str:
        """Hash of the text parts' files, and what changes them."""
        return digest(self.folder, (TOKENIZER, ENCODER)) + self.changes.revision(self.folder, (ENCODER,))


@dataclass(frozen=True)
class SD3Text:
    """Where SD3's text encoders are and how they are read; nothing is loaded before it is asked for.

    `width` is the network's joint_attention_dim, `length` the number of T5 tokens (zeros when `t5` is False).
    """

    folder: Path
    width: int
    length: int
    t5: bool
    dtype: torch.dtype
    device: torch.device
    variant: str | None = None
    changes: Changes = UNCHANGED

    def tokenizer(self, name: str) -> Any:
        """Tokenizer of a part; PriorError when its files are broken."""
        from transformers import CLIPTokenizer, T5TokenizerFast

        encoder = self.folder / dict([*CLIPS, T5])[name]
        if name == T5[0]:
            return load_tokenizer(T5TokenizerFast, self.folder / name, encoder, None)
        return load_tokenizer(CLIPTokenizer, self.folder / name, encoder)

    @uncollected()
    @torch.no_grad()
    def embed(self, texts: list[str]) -> list[dict[str, Tensor]]:
        """For each text `prompt` (T, width) and `pooled` (P,), on the CPU. Warns once of words CLIP does not read."""
        warn_cut(texts, self.tokenizer(CLIPS[0][0]))
        clips = [self._clip(texts, *names) for names in CLIPS]
        tail = self._t5(texts) if self.t5 else [torch.zeros(1, self.length, self.width, dtype=self.dtype)] * len(texts)
        rows = []
        for (one, pooled_one), (two, pooled_two), end in zip(*clips, tail, strict=True):
            joined = torch.cat([one, two], -1)
            prompt = torch.cat([F.pad(joined, (0, self.width - joined.shape[-1])), end], -2)
            rows.append({"prompt": prompt[0], "pooled": torch.cat([pooled_one, pooled_two], -1)[0]})
        return rows

    def _clip(self, texts: list[str], tokenizer_name: str, encoder_name: str) -> list[tuple[Tensor, Tensor]]:
        from transformers import CLIPTextModelWithProjection

        length = window(self.tokenizer(CLIPS[0][0]))
        tokenizer = self.tokenizer(tokenizer_name)
        encoder = self._encoder(CLIPTextModelWithProjection, encoder_name)
        rows = []
        for text in texts:
            out = encoder(tokenize(tokenizer, text, length, self.device).input_ids, output_hidden_states=True)
            rows.append((out.hidden_states[-2].cpu(), out.text_embeds.cpu()))
        return rows

    def _t5(self, texts: list[str]) -> list[Tensor]:
        from transformers import T5EncoderModel

        tokenizer = self.tokenizer(T5[0])
        encoder = self._encoder(T5EncoderModel, T5[1])
        ids = [tokenize(tokenizer, text, self.length, self.device).input_ids for text in texts]
        return [encoder(one)[0].to(self.dtype).cpu() for one in ids]

    def _encoder(self, cls: Any, name: str) -> Any:
        encoder = load_part(cls, self.folder / name, dtype=self.dtype, variant=self.variant)
        self.changes.apply(encoder, self.folder / name)
        return encoder.to(self.device)

    def revision(self) -> str:
        """Hash of the text parts' files, and what changes them."""
        names = [name for pair in (*CLIPS, T5) for name in pair]
        return digest(self.folder, names) + self.changes.revision(self.folder, names)
