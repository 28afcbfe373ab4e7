"""One training by several processes of one thread each: every one takes its share of a batch, gradients are averaged.

Two processes of one thread take a batch 1.4 times as fast as one process of two threads: what a step does besides its
products does not use a second thread. The network is the same in all processes; only the first writes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from threestudio_rf.core.average import average

PATIENCE = timedelta(days=2)
"""A process waits so long for another: a person may stop all of them for a while."""


class Dismissed(Exception):
    """Raised in every process but the first when the training is over."""


@dataclass(frozen=True)
class Crew:
    """`size` processes; this one is number `rank`, the first is 0. `begin` is called in each of the others."""

    size: int
    begin: Callable[[Crew], None]
    rank: int = 0
    rendezvous: str = ""

    def meet(self, module: nn.Module) -> None:
        """Start the other processes (in the first one), wait for all, and take over the first one's weights."""
        torch.set_num_threads(1)
        meeting = self
        if self.rank == 0:
            meeting = Crew(self.size, self.begin, 0, f"file://{tempfile.mkdtemp()}/meeting")
            context = multiprocessing.get_context("spawn")
            for rank in range(1, self.size):
                member = Crew(self.size, self.begin, rank, meeting.rendezvous)
                context.Process(target=_join, args=(member,), daemon=True).start()
        dist.init_process_group(
            "gloo", init_method=meeting.rendezvous, rank=self.rank, world_size=self.size, timeout=PATIENCE
        )
        with torch.no_grad():
            for value in module.state_dict().values():
                dist.broadcast(value, 0)

    def part(self) -> None:
        """Leave. `Dismissed` in every process but the first."""
        dist.destroy_process_group()
        if self.rank:
            raise Dismissed

    def share(self, batch: int) -> int:
        """This process's part of a batch. ValueError unless it can be divided."""
        if batch % self.size:
            raise ValueError(f"batch {batch}: expected a multiple of {self.size}, the number of processes")
        return batch // self.size

    @property
    def stream(self) -> str:
        """What the names of this process's random streams end in."""
        return f"/{self.rank}" if self.rank else ""


def _join(crew: Crew) -> None:
    with suppress(Dismissed):
        crew.begin(crew)


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over the processes; parameters without one have none in any process."""
    average([p.grad for p in module.parameters() if p.grad is not None])


def of_the_first(value: float) -> float:
    """A number as the first process has it."""
    held: Tensor = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(held, 0)
    return held.item()


def silent(_: Any) -> None:
    """A report that says nothing."""
