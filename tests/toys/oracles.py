"""How the pipelines of diffusers are run beside our adapters: what differs from one to the other, as rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def same(x: Tensor) -> Tensor:
    """Latents as they are."""
    return x


@dataclass(frozen=True)
class Case:
    """One kind of folder.

    cfg     the guidance scale of our run
    given   what its pipeline is given for it, beside size, steps and texts
    packed  our latents -> its own
    opened  its own -> ours
    clock   the module that turns what the network heard into an embedding, and that number into t
    free    names that its pipeline must be given as None to load
    """

    clock: str
    clean: Callable[[Tensor], Tensor]
    cfg: float = 3.0
    given: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 3.0})
    packed: Callable[[Tensor], Tensor] = same
    opened: Callable[[Tensor], Tensor] = same
    free: tuple[str, ...] = ()
    texts: dict[str, Any] = field(default_factory=dict)


def guided(**more: Any) -> dict[str, Any]:
    """A guidance scale of 3 and more."""
    return {"guidance_scale": 3.0, **more}


BINS = {"use_resolution_binning": False}
CASES: dict[str, Case] = {
    "sd": Case("time_proj", lambda k: (k + 1) / 1000),
    "sdxl": Case("time_proj", lambda k: (k + 1) / 1000),
    "sd3": Case(
        "time_text_embed.time_proj",
        lambda n: n / 1000,
        given=guided(max_sequence_length=0),
        free=("text_encoder_3", "tokenizer_3"),
    ),
    "sana": Case("time_embed.emb.time_proj", lambda n: n / 1000, given=guided(**BINS)),
    "prx": Case("", lambda t: t, given=guided(**BINS)),
}
