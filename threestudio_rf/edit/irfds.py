"""iRFDS: optimise the noise that explains a picture (arXiv 2406.03293); every choice of the reference is a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.random import Draws, normal, uniform
from threestudio_rf.core.sample import State
from threestudio_rf.core.times import draw, falling_times, flow_match_spacing
from threestudio_rf.edit.invert import Ode, up
from threestudio_rf.edit.path import SOURCE, Path

INITS = ("randn", "image", "inverted")
OPTIMISERS = ("adamw", "sgd")


@dataclass(frozen=True)
class IRFDS:
    """The search for the noise, then the way down from (1 - t1) x0 + t1 e.

    init        the first noise: "randn", "image" (the latents themselves) or "inverted" (FireFlow to t1, `init_steps`
                steps)
    steps       of the optimiser, each the mean of `accumulate` gradients; 0 keeps the first noise
    optimiser   "adamw" without weight decay, or "sgd": e += rate (x0 + u_hat - e), RFDS-Rev's fixed-point step
    t_min..t_max  window of the noise level t', drawn uniformly before `t_shift`
    t_count     where given, t' is one of the so many times of a flow-matching sampler under `t_shift`
                (`flow_match_spacing`) that lie in the window, all equally likely: the reference's draw for SD3
    penalty     factor of the moments, mean(e)^2 + (var(e) - 1)^2 per sample
    scale_source  guidance of u_hat; 1 is none
    t_start     t1; None: the prior's noisiest. Then `down_steps` Euler steps at guidance `scale` under `shift` (None:
                the prior's own), which is that of the inversion too

    ValueError for an unknown init or optimiser, or a window outside 0 < t_min <= t_max <= 1 or without such a time.
    """

    init: str = "randn"
    init_steps: int = 8
    steps: int = 1000
    optimiser: str = "adamw"
    rate: float = 3e-3
    accumulate: int = 2
    t_min: float = 0.2
    t_max: float = 0.9
    t_shift: float = 1.0
    t_count: int | None = None
    penalty: float = 1.0
    scale_source: float = 1.0
    t_start: float | None = 0.9
    down_steps: int = 20
    shift: float | None = 1.0
    scale: float = 1.5

    def __post_init__(self) -> None:
        if self.init not in INITS or self.optimiser not in OPTIMISERS:
            expected = f"{', '.join(INITS)}; {', '.join(OPTIMISERS)}"
            raise ValueError(f"got init {self.init!r}, optimiser {self.optimiser!r}, expected one of {expected}")
        if not 0 < self.t_min <= self.t_max <= 1:
            raise ValueError(f"got window {self.t_min}..{self.t_max}, expected 0 < t_min <= t_max <= 1")
        if self.t_count is not None and not len(_times_of_sampler(self, self.t_count)):
            window = f"{self.t_min}..{self.t_max}"
            raise ValueError(f"got window {window}, expected one with some of the {self.t_count} times of t_count")

    def faithful(self) -> IRFDS:
        """The settings of a reconstruction: down with the guidance of the search."""
        return replace(self, scale=self.scale_source)


def misfit(eps: Tensor, wanted: Tensor, *, penalty: float) -> Tensor:
    """mean (e - wanted)^2 + penalty (mean(e)^2 + (var(e) - 1)^2), each sample for itself: (B, ...) -> (B,).

    With wanted = x0 + u_hat the first term vanishes at the fixed point, the second iff mean 0 and variance 1.
    """
    flat = eps.flatten(1)
    moments = flat.mean(1).square() + (flat.var(1, correction=0) - 1).square()
    return (eps - wanted).flatten(1).square().mean(1) + penalty * moments


def first_noise(path: Path, x0: Tensor, settings: IRFDS, *, generator: Draws) -> Tensor:
    """e before the search, (B, C, h, w)."""
    if settings.init == "image":
        return x0.clone()
    if settings.init == "randn":
        return normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)
    shift = settings.shift or 1.0
    times = falling_times(path.schedule, settings.init_steps, t_start=settings.t_start, shift=shift)
    ode = Ode("fireflow", steps=settings.init_steps, scale_source=settings.scale_source)
    *_, last = up(path, x0, times, ode, generator=generator)
    return split("x0", x0, last.x, path.level(last.t))[1]


def explain(path: Path, x0: Tensor, settings: IRFDS, *, generator: Draws) -> Iterator[State]:
    """The states of the search for x0 (B, C, h, w); `x` is the noise e, `x0_hat` the last guess from one call.

    Repeats: t' in the window, x_t = (1 - t') x0 + t' e, u_hat with the source prompt and no gradient, one optimiser
    step on `misfit(e, x0 + u_hat)`. Every sample draws its own t' and is optimised for itself.
    """
    field = path.velocity(SOURCE, settings.scale_source)
    eps = first_noise(path, x0, settings, generator=generator)
    start = torch.zeros(len(x0), device=x0.device)
    yield State(settings.steps, start, eps.clone(), x0)
    eps = eps.requires_grad_()
    optimiser = _optimiser(eps, settings)
    for number in range(1, settings.steps + 1):
        for _ in range(settings.accumulate):
            t = path.time(_levels(len(x0), settings, generator)).to(x0.device)
            x_t = noise(x0, eps.detach(), path.level(t))
            u = field(x_t, t)
            with torch.enable_grad():
                (misfit(eps, x0 + u, penalty=settings.penalty).sum() / settings.accumulate).backward()
        optimiser.step()
        optimiser.zero_grad()
        yield State(settings.steps - number, t, eps.detach().clone(), split("flow", u, x_t, path.level(t))[0])


def _optimiser(eps: Tensor, settings: IRFDS) -> torch.optim.Optimizer:
    """SGD's rate is that of the fixed-point step: the mean square's gradient is 2 (e - wanted) / M."""
    if settings.optimiser == "sgd":
        return torch.optim.SGD([eps], lr=settings.rate * eps[0].numel() / 2)
    return torch.optim.AdamW([eps], lr=settings.rate, weight_decay=0)


def _levels(n: int, settings: IRFDS, generator: Draws) -> Tensor:
    """t' (n,) in the window, from one generator or one per sample."""
    draws: Sequence[Generator] = [generator] if isinstance(generator, Generator) else generator
    each = n if isinstance(generator, Generator) else 1
    low, high, shift = settings.t_min, settings.t_max, settings.t_shift
    if settings.t_count is not None:
        times = _times_of_sampler(settings, settings.t_count)
        chosen = torch.cat([uniform((each,), one, dtype=torch.float64) for one in draws])
        return times[(chosen * len(times)).long()]
    return torch.cat([draw(each, one, t_min=low, t_max=high, shift=shift) for one in draws])


def _times_of_sampler(settings: IRFDS, count: int) -> Tensor:
    """Those of the `count` times of a flow-matching sampler that lie in the window, falling."""
    times = flow_match_spacing(count, shift=settings.t_shift)[:-1]
    return times[(times >= settings.t_min) & (times <= settings.t_max)]
