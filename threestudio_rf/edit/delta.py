"""Editing without inversion: differences of the target's and the source's velocity under the same noise.

One loop serves FlowEdit (Kulikov et al. 2024, arXiv 2412.08629), DDS (Hertz et al. 2023, arXiv 2304.07090) in flow
space and DRFS (arXiv 2509.05342). With e ~ N(0, I) and a drift c(t'):

    x_s = (1 - t') x_src + t' e
    x_g = (1 - t') x + t' e + c (x - x_src)
    g   = u_target(x_g) - u_source(x_s) + (1 - dc/dt') (x - x_src)
    x  -= rate |h| g

c = 0 is DDS; c = t' with rate 1 is FlowEdit, whose x_g is x + x_s - x_src.

FlowAlign (Kim et al. 2025, arXiv 2505.23145; FlowAlign/FlowAlign, diffusion/editing/sd3_edit.py) is FlowEdit whose
target is guided away from the source prompt instead of the empty one, u_source(x_g) + s (u_target(x_g) -
u_source(x_g)), with a source of scale 1, and which holds the two pictures together that the velocities imply:

    x  -= zeta (x0_hat_target(x_g) - x0_hat_source(x_s)),  x0_hat = x_t - t' u

PDS (Koo et al. 2024, arXiv 2311.13831; KAIST-Visual-AI-Group/PDS, pds/pds.py) matches the latents of DDPM's stochastic
chain, z = (x_s - mu(x_t, x0_hat)) / deviation with s before t. Under the same noises their difference is

    g = A (x - x_src) - C (x0_hat_target(x_g) - x0_hat_source(x_s))        A, C of `posterior`, c = 0

and were the times one entry apart, then A = C and g = C t' / (1 - t') (eps_hat_target - eps_hat_source): DDS with a
weight. Theirs are two apart with the beta of one, so A is (3 + abar) / 2 of C, and PDS is DDS that is pulled back to
the picture by (A - C) (x - x_src).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import Level, column
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import Draws, normal, uniform
from threestudio_rf.core.sample import State, keep, states
from threestudio_rf.edit.path import SOURCE, Path

Drift = Callable[[Tensor], tuple[Tensor, Tensor]]
DRIFTS: dict[str, Drift] = {
    "none": lambda t: (torch.zeros_like(t), torch.zeros_like(t)),
    "linear": lambda t: (t, torch.ones_like(t)),
    "parabola": lambda t: (t * (1 - t), 1 - 2 * t),
}
"""name -> t' -> (c, dc/dt')."""
LAWS = ("falling", "uniform")
WEIGHTS = ("flow", "posterior")
ENTRIES, STRIDE = 1000, 2
"""PDS asks at 500 of the 1000 times of a table."""
BASES = ("uncond", "source")


@dataclass(frozen=True)
class Delta:
    """One method of differences.

    t_start  the noise level t' where it begins, None: the prior's noisiest; t_min the lowest one of law "uniform"
    law      "falling": t' falls over the steps and |h| is its fall; "uniform": drawn in t_min..t_start, |h| = 1 / steps
    drift    c, one of `DRIFTS`
    rate     factor of the step
    draws    noises per step, whose g are averaged
    weight   "flow": g as in the module's head; "posterior": that of PDS, with drift "none"
    zeta     FlowAlign's pull between the implied pictures
    base     the role that the target's guidance counts from: "uncond", or "source" (FlowAlign)
    n_min    FlowEdit: that many of the last steps sample x + x_s - x_src with the target's velocity instead (law
             "falling")
    of       the steps are the last of so many from pure noise (`method.times_of`), without t_start
    scale, scale_source  guidance of both branches
    shift    the resolution shift of falling steps; None: the prior's own

    ValueError for an unknown law, drift, weight or base, for n_min under another law or of all steps, for `of` with
    t_start.
    """

    steps: int = 33
    t_start: float | None = None
    t_min: float = 0.02
    law: str = "falling"
    drift: str = "linear"
    rate: float = 1.0
    draws: int = 1
    scale: float = 13.5
    scale_source: float = 3.5
    shift: float | None = None
    weight: str = "flow"
    zeta: float = 0.0
    base: str = "uncond"
    n_min: int = 0
    of: int | None = None

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS or (self.weight == "posterior" and self.drift != "none"):
            got = f"weight {self.weight!r} with drift {self.drift!r}"
            raise ValueError(f"got {got}, expected one of {', '.join(WEIGHTS)}, posterior with drift none")
        if self.base not in BASES:
            raise ValueError(f"got base {self.base!r}, expected one of {', '.join(BASES)}")
        if self.n_min and (self.law != "falling" or self.n_min >= self.steps):
            raise ValueError(
                f"got n_min {self.n_min}, law {self.law}, {self.steps} steps, expected law falling and more steps"
            )
        if self.of is not None and (self.t_start is not None or self.of < self.steps):
            got = f"got of {self.of}, {self.steps} steps, t_start {self.t_start}"
            raise ValueError(f"{got}, expected no t_start and an `of` of at least the steps")
        if self.law not in LAWS or self.drift not in DRIFTS:
            expected = f"{', '.join(LAWS)}; {', '.join(DRIFTS)}"
            raise ValueError(f"got law {self.law!r} and drift {self.drift!r}, expected one of {expected}")

    def faithful(self) -> Delta:
        """The settings of a reconstruction: both branches alike."""
        return replace(self, scale=self.scale_source)


def posterior(path: Path, t: Tensor, stride: int = STRIDE) -> tuple[Tensor, Tensor]:
    """A and C (B,) of PDS at the prior's t (B,), s = t - stride / 1000, for the variance-preserving path of the same
    ratio of signal to noise, abar = (1 - t')^2 / ((1 - t')^2 + t'^2):

        c0 = sqrt(abar_s) beta / (1 - abar_t),  c1 = sqrt(1 - beta) (1 - abar_s) / (1 - abar_t)
        deviation = sqrt((1 - abar_s) / (1 - abar_t) beta),  A = (sqrt(abar_s) - c1 sqrt(abar_t)) / deviation,
        C = c0 / deviation

    As in their code beta = 1 - abar_t / abar_(t - 1/1000) is that of one entry whatever the stride.
    """
    ends = (t.double(), t.double() - 1 / ENTRIES, t.double() - stride / ENTRIES)
    levels = [path.level(end.clamp(min=0)) for end in ends]
    now, one, before = (level.alpha**2 / (level.alpha**2 + level.sigma**2) for level in levels)
    beta = 1 - now / one
    c0, c1 = before.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - before) / (1 - now)
    deviation = ((1 - before) / (1 - now) * beta).sqrt()
    return (before.sqrt() - c1 * now.sqrt()) / deviation, c0 / deviation


class Difference(NamedTuple):
    """g of the module's head, and x0_hat of the target less that of the source, each (B, ...)."""

    g: Tensor
    gap: Tensor


def difference(
    target: Field, source: Field, x: Tensor, x_src: Tensor, eps: Tensor, t: Tensor, level: Level, *, drift: Drift
) -> Difference:
    """Both at the prior's t (B,), where the level is (1 - t', t')."""
    c, slope = (column(value, x) for value in drift(level.sigma))
    x_s, x_g = noise(x_src, eps, level), noise(x, eps, level) + c * (x - x_src)
    apart = target(x_g, t) - source(x_s, t)
    return Difference(apart + (1 - slope) * (x - x_src), x_g - x_s - column(level.sigma, x) * apart)


def plan(path: Path, times: Tensor, settings: Delta, n: int, generator: Draws) -> Iterator[tuple[Tensor, Tensor]]:
    """(t, |h|) of every step, each (n,): along falling `times` (S + 1,), or drawn below the level of the first."""
    if settings.law == "falling":
        for t, t_next in pairwise(times[:, None].expand(-1, n)):
            yield t, path.level(t).sigma - path.level(t_next).sigma
        return
    top = path.level(times[:1]).sigma
    for _ in range(settings.steps):
        straight = torch.lerp(torch.full_like(top, settings.t_min), top, uniform((n,), generator).to(top))
        yield path.time(straight), torch.full((n,), 1 / settings.steps)


def change(
    path: Path,
    x_src: Tensor,
    times: Tensor,
    settings: Delta,
    *,
    generator: Draws,
    role: str,
    mask: Tensor | None = None,
) -> Iterator[State]:
    """The states of x from x_src (B, C, h, w), which is a picture at every step; a state's t is where the step asked.
    `mask` (B or 1, 1, h, w) is 1 where x may change. With n_min the last states are those of sampling: noisy, at the t
    of their end, and their x0_hat is the picture."""
    target = path.velocity(role, settings.scale, base=settings.base)
    source = path.velocity(SOURCE, settings.scale_source)
    drift, x = DRIFTS[settings.drift], x_src
    free = 1.0 if mask is None else mask.to(x_src)
    ways = islice(plan(path, times, settings, len(x_src), generator), settings.steps - settings.n_min)
    for number, (t, length) in enumerate(ways, 1):
        t = t.to(x.device)
        level, total, gaps = path.level(t), torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(settings.draws):
            eps = normal(x.shape, generator, device=x.device, dtype=x.dtype)
            found = difference(target, source, x, x_src, eps, t, level, drift=drift)
            total, gaps = total + found.g, gaps + found.gap
        if settings.weight == "posterior":
            identity, matched = (column(value.to(x), x) for value in posterior(path, t))
            total = settings.draws * identity * (x - x_src) - matched * gaps
        x = x - free * settings.rate * column(length, x) * total / settings.draws
        x = x - free * settings.zeta * gaps / settings.draws if settings.zeta else x
        yield State(settings.steps - number, t, x, x)
    if settings.n_min:
        yield from _sampled(path, target, x, x_src, times[-settings.n_min - 1 :], generator=generator, mask=mask)


def _sampled(
    path: Path, target: Field, x: Tensor, x_src: Tensor, times: Tensor, *, generator: Draws, mask: Tensor | None
) -> Iterator[State]:
    """FlowEdit's last steps (its Algorithm 1, below n_min): from x + x_s - x_src down falling `times`."""
    eps = normal(x.shape, generator, device=x.device, dtype=x.dtype)
    top = path.level(times[:1].to(x.device).expand(len(x)))
    noisy = x + noise(x_src, eps, top) - x_src
    after = None if mask is None else keep(x_src, eps, mask, schedule=path.level)
    yield from states(target, noisy, times, after=after)
