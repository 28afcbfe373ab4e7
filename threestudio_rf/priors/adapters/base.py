"""A prior from a folder of diffusers whose pipeline is a row of data: what that pipeline does otherwise than others.

Two phases: `embed` loads the text encoders alone and frees them; network and VAE load on first use, or by `load()`.
So embed every text of a run first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import DiscreteVP, Heard, Schedule, rectified_flow
from threestudio_rf.priors.adapters.text import PipelineText, TextSide
from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape
from threestudio_rf.priors.folder.parts import Parts
from threestudio_rf.priors.sampling.pipeline import Lengths, Pipeline

Texts = Mapping[str, Tensor]
LABELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "n t": lambda t, n: n * t,
    "t": lambda t, n: t,
    "1 - t": lambda t, n: 1 - t,
}
"""What a flow's network is told at t, n being num_train_timesteps times timestep_scale."""


@dataclass(frozen=True)
class Adapter:
    """What is particular to one pipeline of diffusers.

    name       the prior's
    pipeline   its class, which embeds texts
    network    (subfolder, class) of its network
    text       its text encoders, and how they are asked
    vaes       the classes of VAE it has, () for none: latents are the picture
    licence    that of the released weights
    shape      its latents, by the folder's configs
    ask        (network, x_t, label, texts, pixels per latent) -> output (B, C, h, w), in our sign
    needs      the tensors of a condition that `ask` reads
    label      what a flow is told, a row of LABELS; a network on a table is told its index
    hear       (t, dtype) -> the time that the network makes of t, where it rounds its label itself
    kind       what `ask` returns; None: by the scheduler's config, on its table of levels
    path       a flow's levels
    read       (output, x_t, t) -> prediction of `kind`, both in float32
    sigmas     its pipeline asks the scheduler for even sigmas 1 .. 1/n, and for `shift` of (tokens, steps) where it has
               a law of its own for a dynamic shift
    start      the deviation of its noise
    lengths    what its pipeline keeps of the prompt's own prediction under guidance; sampling alone does so here
    """

    name: str
    pipeline: str
    network: tuple[str, str]
    text: TextSide
    vaes: tuple[str, ...]
    licence: str
    shape: Callable[[Places], Shape]
    ask: Callable[[Any, Tensor, Tensor, Texts, int], Tensor]
    needs: tuple[str, ...] = ("prompt", "mask")
    label: str = "n t"
    hear: Callable[[Tensor, torch.dtype], Tensor] | None = None
    kind: Kind | None = "flow"
    path: Schedule = field(default=rectified_flow)
    read: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda out, x_t, t: out
    sigmas: bool = False
    shift: Callable[[int, int], float] | None = None
    start: float = 1.0
    lengths: Lengths | None = None


class FolderPrior:
    """The prior of a folder read by an `Adapter`. `n` scales a flow's label, `table` holds the trained levels of
    another kind."""

    whole_labels = True

    def __init__(
        self,
        adapter: Adapter,
        shape: Shape,
        parts: Parts,
        text: PipelineText,
        *,
        kind: Kind,
        table: DiscreteVP | None,
        cache: ConditionCache,
        pipeline: Pipeline,
        n: float,
    ) -> None:
        self.adapter, self.shape, self.parts, self.text, self.cache = adapter, shape, parts, text, cache
        self.kind, self.table, self.n = kind, table, n
        self.pipeline: Pipeline = pipeline
        self.name, self.licence, self.time_shift = adapter.name, adapter.licence, pipeline.time_shift
        self.latent_shape = (shape.channels, shape.size, shape.size)
        self.schedule: Schedule = adapter.path if table is None else table
        if adapter.hear is not None and text.dtype != torch.float32:
            self.schedule = Heard(self.schedule, self.hear)

    def load(self) -> None:
        """Load network and VAE now, with their checks, instead of on first use."""
        _ = self.parts.network, self.parts.vae

    def embed(self, prompts: list[str]) -> Condition:
        """The tensors of `Adapter.needs`; from the cache where it knows the text, each text embedded once."""
        return self.cache.embed(prompts, self.text.embed).to(self.text.device)

    def fits(self, text: str) -> bool:
        """Whether the text encoder reads the whole text."""
        return not self.text.excess(text)

    def hear(self, t: Tensor) -> Tensor:
        """The time (B,) that the network makes of t (B,); the schedule's levels are those of it."""
        rounded = self.adapter.hear
        exact = rounded is None or self.text.dtype == torch.float32
        return t if rounded is None or exact else rounded(t, self.text.dtype).to(t.dtype)

    def label(self, t: Tensor) -> Tensor:
        """What the network is told at t (B,): the index of its level, int64; of a flow its row of LABELS, float32."""
        if self.table is None:
            return LABELS[self.adapter.label](t, self.n).to(torch.float32)
        return self.table.index(t) if self.whole_labels else self.table.between(t)

    def between(self) -> FolderPrior:
        """The same network, weights shared, whose labels are not rounded to the table's entries; a flow is itself."""
        if self.table is None:
            return self
        other = copy(self)
        other.whole_labels = False
        return other

    @property
    def network(self) -> Any:
        """The network, on the device."""
        return self.parts.network

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`kind`, as `Prior.predict`; ValueError for latents whose sides do not fit the network, and a condition of
        another length or without a tensor that it reads."""
        return self.answer(x_t, t, condition)

    def answer(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`predict` with a graph, for what learns inside the network."""
        self.shape.check_latents(x_t)
        condition.require(self.adapter.needs, len(x_t))
        device, dtype = self.text.device, self.text.dtype
        texts = {
            name: x.to(device, dtype) if x.is_floating_point() else x.to(device)
            for name, x in condition.tensors.items()
        }
        label = self.label(t).to(device)
        out = self.adapter.ask(self.parts.network, x_t.to(device, dtype), label, texts, self.shape.factor)
        return self.adapter.read(out.to(x_t.device, torch.float32), x_t.float(), t.float())

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], not clamped -> latents, differentiable in `image`. The posterior's mode, or a sample
        of it with a generator. ValueError unless H and W fit VAE and network."""
        self.shape.check_image(image)
        return self.parts.encode(image, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W) in [0, 1]."""
        return self.parts.decode(latents)
