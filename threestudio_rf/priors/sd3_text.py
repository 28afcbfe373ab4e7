"""SD3's text side: three encoders, loaded alone and one after the other, so they are never in memory with the network.

Equal to StableDiffusion3Pipeline.encode_prompt bit for bit: both CLIP encoders give hidden_states[-2], joined and
padded with zeros to the width of the joint attention; T5's tokens follow, or as many zero tokens where it is missing;
the pooled vector is both projections joined. Every text is embedded by itself, so it does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.core.collector import uncollected
from threestudio_rf.priors.folder import load_part
from threestudio_rf.priors.sd_text import digest, load_tokenizer, tokenize, warn_cut, window

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
        return load_tokenizer(cls, self.folder / name, self.folder / dict([*CLIPS, T5])[name])

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
        return load_part(cls, self.folder / name, dtype=self.dtype, variant=self.variant).to(self.device)

    def revision(self) -> str:
        """Hash of the text parts' files."""
        return digest(self.folder, [name for pair in (*CLIPS, T5) for name in pair])
