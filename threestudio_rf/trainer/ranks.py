"""One run by several processes, as torchrun starts them: each takes its share of the views, gradients are averaged.

The batch of the settings is that of all processes together, and every draw is that of the whole batch, so N processes
take the steps of one, to rounding. Only the first one writes.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.distributed.rendezvous import rendezvous

from threestudio_rf.core.average import average
from threestudio_rf.core.random import Part
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.trainer.watch import Watch, client

MEETING = timedelta(seconds=75)
"""How long a process waits for all others to start."""
PATIENCE = timedelta(seconds=120)
"""How long a process waits for another one within a step."""
LOOKS = timedelta(hours=2)
"""How long the others wait while the first one loads, looks and saves."""
NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostRankError(RuntimeError):
    """Another process of the run is gone or does not answer."""


class _Joined(torch.autograd.Function):
    """Rows (B, C, h, W) of all processes, one below the other. All ask for the same gradient; each keeps that of its
    own rows, times the number of processes, since the mean over them follows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.ranks.size, dim=2)[ctx.ranks.rank] * ctx.ranks.size, None


_joined: Callable[[Tensor, Ranks], Tensor] = _Joined.apply


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`; alone there is nothing to agree about."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, camera: Camera) -> Camera:
        """This process's views, or its rows of a single one. ValueError where they cannot be divided."""
        return camera if self.size == 1 else camera.share(self.rank, self.size)

    def of_batch(self, camera: Camera) -> Ranks:
        """Who shares the pictures of `camera`, a result of `share`: nobody where each process has rows of one."""
        return self if camera.band[1] == 1 else ALONE

    def joined(self, rows: Tensor, camera: Camera) -> Tensor:
        """The whole picture (1, C, H, W) of the rows that each process has; its gradient counts in the mean of all."""
        if camera.band[1] == 1:
            return rows
        with answered():
            return _joined(rows, self)

    def rows(self, count: int, draws: int) -> Tensor:
        """Where this process's `count` samples, each view once per draw, stand in the batch of all processes."""
        views = count // draws
        inside = torch.arange(self.rank * views, (self.rank + 1) * views)
        return (torch.arange(draws)[:, None] * (views * self.size) + inside).flatten()

    def part(self, generator: Generator, count: int, draws: int) -> Generator | Part:
        """The draws of this process's samples."""
        return generator if self.size == 1 else Part(generator, self.rows(count, draws), count * self.size)

    def average(
        self,
        parameters: Sequence[nn.Parameter],
        figures: Mapping[str, Tensor],
        norm: str = "",
    ) -> dict[str, float]:
        """Take gradients to their means, and return those of the figures, scalars of the device, with the `norm` of the
        mean gradient under that name: the same numbers in every process, read in one go. Where no process has a
        gradient there is none. LostRankError when another process does not answer."""
        device, names = parameters[0].device, [*figures, *([norm] if norm else [])]
        none = torch.empty(0, device=device)
        values = torch.cat([none, *(value.detach().float().to(device).view(1) for value in figures.values())])
        gradients = [p.grad for p in parameters if p.grad is not None]
        given = none
        if self.size > 1:
            given = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            with answered():
                average([*gradients, given, values])
        total = [nn.utils.get_total_norm(gradients).float().to(device).view(1)] if norm else []
        read = torch.cat([given, values, *total]).tolist()
        if self.size > 1:
            for parameter, gradient, share in zip(parameters, gradients, read, strict=False):
                parameter.grad = gradient if share > 0 else None
        return dict(zip(names, read[len(given) :], strict=True))

    def any(self, asked: bool) -> bool:
        """Whether it is so in any process; waits for all, however long the first one loads, looks and saves."""
        if self.size == 1:
            return asked
        held = torch.tensor(float(asked))
        with answered():
            dist.all_reduce(held, dist.ReduceOp.MAX, group=_SIDE[0])
        return bool(held)

    def all(self, said: dict[str, str]) -> list[dict[str, str]]:
        """What each process says, in their order."""
        if self.size == 1:
            return [said]
        heard: list[dict[str, str]] = [{}] * self.size
        with answered():
            dist.all_gather_object(heard, said, group=_SIDE[0])
        return heard

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)


ALONE = Ranks()
_SIDE: list[dist.ProcessGroup] = []
"""The group that waits longer than a step takes."""
_WATCH: list[Watch] = []


def join(environment: Mapping[str, str], device: torch.device) -> Ranks:
    """Meet the other processes that torchrun started; alone where there are none. ValueError for settings that are not
    whole, LostRankError when the others do not come."""
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    missing = [name for name in NAMES if not environment.get(name)]
    if missing:
        raise ValueError(f"WORLD_SIZE={environment['WORLD_SIZE']}: got no {', '.join(missing)}, expected torchrun's")
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    if not all(value.isdigit() for value in numbers.values()) or int(numbers["RANK"]) >= int(numbers["WORLD_SIZE"]):
        raise ValueError(f"got {', '.join('='.join(item) for item in numbers.items())}, expected torchrun's numbers")
    host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    with answered():
        if environment["RANK"] != "0":
            _reach(host, port, time.monotonic() + MEETING.total_seconds())
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
        beats = client(host, port, environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        _WATCH[:] = [Watch(beats, rank, size, free=_free)]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _SIDE[:] = [dist.new_group(backend="gloo", timeout=LOOKS)]
    return Ranks(rank, size)


def _reach(host: str, port: int, until: float) -> None:
    """Wait until something listens there: torch waits up to three times as long as it is told, and prints its stack.
    RuntimeError where nothing does in time."""
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > until:
                raise RuntimeError(f"nothing answers at {host}:{port} ({error.strerror or error})") from None
            time.sleep(0.5)
        else:
            return


def _free() -> None:
    """Let a program that waits for a lost process fail."""
    for group in (*_SIDE, dist.group.WORLD):
        if group is not None:
            with suppress(RuntimeError):
                group.abort()


def leave(ranks: Ranks) -> None:
    """The end of the run for this process."""
    if ranks.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
        _SIDE.clear()
        while _WATCH:
            _WATCH.pop().leave()


def local_rank() -> int:
    """Which of its machine's processes this is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def answered() -> Iterator[None]:
    """What torch.distributed says of a lost process becomes LostRankError."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise ValueError("MASTER_PORT: another program listens there, expected a free one") from None
        line = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise LostRankError(f"another process of this run is gone or does not answer: {line}") from error
