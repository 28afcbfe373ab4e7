"""SD3's text side: three encoders, loaded alone and one after the other, so they are never in memory with the network.

Equal to StableDiffusion3Pipeline.encode_prompt bit for bit: both CLIP encoders give hidden_states[-2], joined and
padded with zeros to the width of the joint attention; T5's tokens follow, or as many zero tokens where it is missing;
the pooled vector is both projections joined. Every text is embedded by itself, so it does not depend on the others.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder import load_part, quiet

CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
T5 = ("tokenizer_3", "text_encoder_3")


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

    def tokenizer(self, name: str) -> Any:
        """Tokenizer of a part; PriorError when its files are broken."""
        from transformers import CLIPTokenizer, T5TokenizerFast

        cls = T5TokenizerFast if name == T5[0] else CLIPTokenizer
        try:
            with quiet():
                return cls.from_pretrained(str(self.folder / name), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PriorError(f"{self.folder / name}: the tokenizer cannot be loaded: {error}") from None

    def limit(self, tokenizer: Any) -> int:
        """Tokens of CLIP's window, begin and end included."""
        return int(tokenizer.model_max_length)

    def excess(self, text: str, tokenizer: Any) -> str:
        """The end of `text` that CLIP's window cuts off, "" when it is read whole."""
        with quiet():
            ids = tokenizer(text).input_ids
        return str(tokenizer.decode(ids[self.limit(tokenizer) - 1 : -1])) if len(ids) > self.limit(tokenizer) else ""

    @torch.no_grad()
    def embed(self, texts: list[str]) -> list[dict[str, Tensor]]:
        """For each text `prompt` (T, width) and `pooled` (P,), on the CPU. Warns once of words CLIP does not read."""
        self._warn(texts)
        clips = [self._clip(texts, *names) for names in CLIPS]
        tail = self._t5(texts) if self.t5 else [torch.zeros(1, self.length, self.width, dtype=self.dtype)] * len(texts)
        rows = []
        for (one, pooled_one), (two, pooled_two), end in zip(*clips, tail, strict=True):
            joined = torch.cat([one, two], -1)
            prompt = torch.cat([F.pad(joined, (0, self.width - joined.shape[-1])), end], -2)
            rows.append({"prompt": prompt[0], "pooled": torch.cat([pooled_one, pooled_two], -1)[0]})
        return rows

    def _warn(self, texts: list[str]) -> None:
        tokenizer = self.tokenizer(CLIPS[0][0])
        cut = [(text, tail) for text in texts if (tail := self.excess(text, tokenizer))]
        if cut:
            rest = f" (and {len(cut) - 1} more texts)" if len(cut) > 1 else ""
            warnings.warn(
                f"the prompt is longer than the {self.limit(tokenizer)} tokens that CLIP reads; "
                f"left out: {cut[0][1]!r}{rest}",
                stacklevel=4,
            )

    def _clip(self, texts: list[str], tokenizer_name: str, encoder_name: str) -> list[tuple[Tensor, Tensor]]:
        from transformers import CLIPTextModelWithProjection

        length = self.limit(self.tokenizer(CLIPS[0][0]))
        tokenizer = self.tokenizer(tokenizer_name)
        encoder = self._encoder(CLIPTextModelWithProjection, encoder_name)
        rows = []
        for text in texts:
            out = encoder(self._ids(tokenizer, text, length), output_hidden_states=True)
            rows.append((out.hidden_states[-2].cpu(), out.text_embeds.cpu()))
        return rows

    def _t5(self, texts: list[str]) -> list[Tensor]:
        from transformers import T5EncoderModel

        tokenizer = self.tokenizer(T5[0])
        encoder = self._encoder(T5EncoderModel, T5[1])
        return [encoder(self._ids(tokenizer, text, self.length))[0].to(self.dtype).cpu() for text in texts]

    def _encoder(self, cls: Any, name: str) -> Any:
        return load_part(cls, self.folder / name, dtype=self.dtype, variant=self.variant).to(self.device)

    def _ids(self, tokenizer: Any, text: str, length: int) -> Tensor:
        with quiet():
            out = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = out.input_ids
        return ids.to(self.device)

    def revision(self) -> str:
        """Hash over names, sizes and mtimes of the text parts' files and the content of their JSON."""
        digest = hashlib.sha256()
        for name in [name for pair in (*CLIPS, T5) for name in pair]:
            for file in sorted(path for path in (self.folder / name).glob("*") if path.is_file()):
                stat = file.stat()
                digest.update(f"{name}/{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
                if file.suffix == ".json":
                    digest.update(file.read_bytes())
        return digest.hexdigest()
