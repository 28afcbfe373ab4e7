"""One resumable training loop for every embedded network: a part says what to minimise, the loop does the rest.

The state after step n depends on the part, the seed and n only, unless it is told how long it may take: random numbers
come from `generator(seed, step, part)` and the learning rate from the step, so a run that was stopped and resumed ends
where an uninterrupted one does.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from threestudio_rf.core.random import generator
from threestudio_rf.tiny.train.crew import Crew, average_gradients, of_the_first


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters of a module lie."""
    return next(module.parameters()).device


def half(device: torch.device, enabled: bool = True) -> torch.autocast:
    """Products in bfloat16 on a device, the rest as it is."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def compiled(module: Any) -> Any:
    """The module, compiled where that helps: on CUDA. On a CPU the UNet is as fast without (measured)."""
    return torch.compile(module) if device_of(module).type == "cuda" else module


class Part(Protocol):
    """What is trained: its trainable modules and the loss of one step."""

    name: str
    modules: nn.ModuleDict

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise and what to log beside it."""


@dataclass(frozen=True)
class Schedule:
    """Optimiser of one part: AdamW, warm-up and cosine decay, gradient clipping, exponential mean of the weights."""

    steps: int
    lr: float
    warmup: float = 0.05
    final: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.999
    save_seconds: float = 120.0
    log_every: int = 25
    seconds: float = math.inf
    """Where it is finite, the training is over after so long at the latest, and its rate falls with the time that is
    left; what it reaches then depends on the machine too."""
    crew: Crew | None = None
    """The processes that share every batch; None: this one alone."""

    def rate(self, step: int, elapsed: float = 0.0) -> float:
        """Learning rate of `step` after `elapsed` seconds: linear warm-up, then a half cosine down to `final` of the
        peak."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        share = max((step - warm) / max(1, self.steps - warm), min(1.0, elapsed / self.seconds))
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass
class Curve:
    """The training curve, appended to `<part>.csv` and cut back to the resumed step."""

    file: Path
    rows: list[dict[str, float]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Drop what was logged at or after `step`."""
        if self.file.exists():
            with self.file.open(newline="") as handle:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(handle)]
            self.rows = [row for row in rows if row["step"] < step]
        self._write()

    def add(self, row: dict[str, float]) -> None:
        """Append one row."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        if self.rows:
            with self.file.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, fieldnames=list(self.rows[-1]), extrasaction="ignore", restval="")
                writer.writeheader()
                writer.writerows(self.rows)


def _save(state: dict[str, object], file: Path) -> None:
    temporary = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    with temporary.open("wb") as handle:
        torch.save(state, handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)


def _restore(file: Path, part: Part, optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], int, float]:
    try:
        state = torch.load(file, map_location=device_of(part.modules), weights_only=True)
        part.modules.load_state_dict(state["modules"])
        optimiser.load_state_dict(state["optimiser"])
        return dict(state["mean"]), int(state["step"]), float(state["seconds"])
    except Exception:  # torch raises many kinds for a file that holds something else
        raise ValueError(f"{file} is no state of {part.name}: remove it to begin anew") from None


def _average(mean: dict[str, Tensor], modules: nn.ModuleDict, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in modules.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - decay)
        else:
            mean[name].copy_(value)


def train(
    part: Part, schedule: Schedule, folder: Path, *, seed: int = 0, report: Callable[[str], None] = print
) -> Iterator[int]:
    """Train `part` for `schedule.steps`, resuming from `<folder>/<part>.pt`; yields after every step. When it ends the
    modules hold the averaged weights. A loss that is not finite raises FloatingPointError with the step."""
    folder.mkdir(parents=True, exist_ok=True)
    file, curve, crew = folder / f"{part.name}.pt", Curve(folder / f"{part.name}.csv"), schedule.crew
    optimiser = torch.optim.AdamW(
        part.modules.parameters(), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
    )
    mean = {name: value.detach().clone() for name, value in part.modules.state_dict().items()}
    first, seconds = 0, 0.0
    if file.exists():
        mean, first, seconds = _restore(file, part, optimiser)
        report(f"{part.name}: resumed at step {first}")
    if crew is not None:
        crew.meet(part.modules)
    writes = crew is None or crew.rank == 0
    if writes:
        curve.resume(first)
    started, saved = time.perf_counter() - seconds, time.perf_counter()
    for step in range(first, schedule.steps):
        rate = schedule.rate(step, _agreed(crew, time.perf_counter() - started))
        logged = _step(part, rate, schedule, optimiser, step, seed)
        _average(mean, part.modules, schedule.ema, step)
        seconds = _agreed(crew, time.perf_counter() - started)
        last = step + 1 == schedule.steps or seconds > schedule.seconds
        if writes and (step + 1) % schedule.log_every == 0:
            curve.add({"step": step, "seconds": round(seconds, 1), "lr": rate, **logged})
            report(f"{part.name} {step + 1}/{schedule.steps} {seconds:.0f} s  {_text(logged)}")
        if writes and (time.perf_counter() - saved > schedule.save_seconds or last):
            modules = part.modules.state_dict()
            state = {"modules": modules, "optimiser": optimiser.state_dict(), "mean": mean}
            _save(state | {"step": step + 1, "seconds": seconds}, file)
            saved = time.perf_counter()
        yield step
        if last:
            break
    if crew is not None:
        crew.part()
    part.modules.load_state_dict(mean)


def _agreed(crew: Crew | None, seconds: float) -> float:
    """The time that has passed, the same in all processes."""
    return seconds if crew is None else of_the_first(seconds)


def _step(
    part: Part, rate: float, schedule: Schedule, optimiser: torch.optim.Optimizer, step: int, seed: int
) -> dict[str, float]:
    for group in optimiser.param_groups:
        group["lr"] = rate
    on_cpu = device_of(part.modules).type == "cpu"  # with few tokens the fused kernel's backward is half of a CPU step
    with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext():
        stream = "" if schedule.crew is None else schedule.crew.stream
        loss, logged = part.loss(step, generator(seed, step, f"train/{part.name}{stream}"))
        if not loss.isfinite():
            raise FloatingPointError(f"{part.name}: the loss of step {step} is {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
    if schedule.crew is not None:
        average_gradients(part.modules)
    norm = nn.utils.clip_grad_norm_(part.modules.parameters(), schedule.clip)
    optimiser.step()
    return {"loss": loss.item(), "grad_norm": norm.item(), **logged}


def _text(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
