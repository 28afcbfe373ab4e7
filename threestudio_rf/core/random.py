"""Stateless random numbers: what is drawn depends on (seed, step, stream) only.

Resuming, the number of processes and how often a run is evaluated can therefore not change a result. Everything is
drawn on the CPU in float32 and moved afterwards, so devices agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from threestudio_rf.core.transfer import sent


@dataclass(frozen=True)
class Part:
    """What some samples of a batch of `total` get when the whole batch is drawn from `generator`; `rows` (n,) int64."""

    generator: Generator
    rows: Tensor
    total: int


Draws = Generator | Sequence[Generator]
"""One generator for a whole batch, or one per sample: then a sample does not depend on the batch it is drawn in."""


def generator(seed: int, step: int, stream: str) -> Generator:
    """A CPU generator for one use of random numbers; equal arguments give equal draws, others independent ones."""
    digest = hashlib.sha256(f"{seed}/{step}/{stream}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(
    shape: Sequence[int],
    generator: Draws | Part,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of `shape`, drawn on the CPU in float32; ValueError unless one generator per sample."""
    return sent(_drawn(torch.randn, shape, generator), device, dtype)


def uniform(
    shape: Sequence[int],
    generator: Draws | Part,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1) of `shape`, drawn on the CPU in float32; ValueError unless one generator per sample."""
    return sent(_drawn(torch.rand, shape, generator), device, dtype)


def _drawn(law: Callable[..., Tensor], shape: Sequence[int], generator: Draws | Part) -> Tensor:
    if isinstance(generator, Generator):
        return law(tuple(shape), generator=generator)
    if isinstance(generator, Part):
        if len(generator.rows) != shape[0]:
            raise ValueError(f"got {len(generator.rows)} rows of a batch, expected one for each of {shape[0]} samples")
        return law((generator.total, *shape[1:]), generator=generator.generator).index_select(0, generator.rows)
    if len(generator) != shape[0]:
        raise ValueError(f"got {len(generator)} generators, expected one for each of {shape[0]} samples")
    return torch.stack([law(tuple(shape[1:]), generator=one) for one in generator])
