"""One run by several processes, as torchrun starts them: they share rays and views, gradients are averaged.

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
from threestudio_rf.core.transfer import sent
from threestudio_rf.scenes.base import Rendering, Scene
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
    """Maps (B, C, H, W) of all views from every size-th row (B, C, h, W) in each process: of the first dimension this
    process's share, or all of it where all ask for the same. The gradient of a row goes to who rendered it; where all
    ask for the same it counts once per process, since the mean over them follows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, shared: bool) -> Tensor:
        ctx.ranks, ctx.shared = ranks, shared
        whole = torch.stack(_gathered(rows, ranks.size), dim=3).flatten(2, 3)
        return whole.chunk(ranks.size)[ranks.rank].clone() if shared else whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        ranks: Ranks = ctx.ranks
        with answered():
            whole = torch.cat(_gathered(grad, ranks.size)) if ctx.shared else grad * ranks.size
        return whole[:, :, ranks.rank :: ranks.size], None, None


_joined: Callable[[Tensor, Ranks, bool], Tensor] = _Joined.apply


def _gathered(own: Tensor, size: int) -> list[Tensor]:
    """What every process has, in their order."""
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size)]
    dist.all_gather(parts, own.contiguous())
    return parts


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `size`; alone there is nothing to agree about."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def share(self, camera: Camera, scene: Scene) -> Camera:
        """This process's views; a single one is everybody's where its rows can be shared. ValueError where views cannot
        be divided."""
        everybody = self.size == 1 or (len(camera) == 1 and scene.by_rows)
        return camera if everybody else camera.share(self.rank, self.size)

    def render(self, scene: Scene, camera: Camera, generator: Generator, *, normals: bool) -> Rendering:
        """What the scene shows to this process's share of all views, `camera`. Where rows can be rendered alone, each
        process renders some of every view, so that none waits for one that sees more, and hands them round."""
        own = self.share(camera, scene)
        if self.size == 1 or not scene.by_rows or (len(own) < len(camera) and camera.height % self.size):
            return scene.render(own, generator, normals=normals)
        rows = scene.render(camera.rows(self.rank, self.size), generator, normals=normals)
        maps = {name: tensor for name, tensor in rows._asdict().items() if tensor is not None}
        packed = torch.cat(list(maps.values()), dim=1)
        packed = packed if packed.requires_grad else packed.detach().requires_grad_()
        with answered():
            whole = _joined(packed, self, len(own) < len(camera))
        return Rendering(**dict(zip(maps, whole.split([m.shape[1] for m in maps.values()], dim=1), strict=True)))

    def of_batch(self, own: Camera, camera: Camera) -> Ranks:
        """Who shares the pictures of `camera`, of which `own` are this process's: nobody where all have the same."""
        return self if len(own) < len(camera) else ALONE

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
        values = torch.cat([none, *(sent(value.detach().float(), device).view(1) for value in figures.values())])
        gradients = [p.grad for p in parameters if p.grad is not None]
        given = none
        if self.size > 1:
            given = sent(torch.tensor([float(p.grad is not None) for p in parameters]), device)
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
