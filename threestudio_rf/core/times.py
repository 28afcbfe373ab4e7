"""Times: where to draw t, how to space the steps of a solver, and SD3's shift.

Windows `t_min..t_max` are noise levels in [0, 1]. A shift moves the draw of t, never the path: the level is
(1 - t, t) and the label 1000 t at the shifted t.
"""

from __future__ import annotations

from typing import Literal, TypeVar, get_args

import torch
from torch import Generator, Tensor

from threestudio_rf.core.level import Schedule, rectified_flow, to_straight
from threestudio_rf.core.random import uniform

Law = Literal["uniform", "annealed", "logit_normal", "dreamtime"]
LAWS: tuple[Law, ...] = get_args(Law)
Spacing = Literal["uniform", "trailing", "linspace", "quad"]
SamplingLaw = Literal["leading", "trailing", "linspace", "quad", "even", "flow_match"]
Number = TypeVar("Number", float, Tensor)
Bump = tuple[float, float, float, float]
"""(m1, m2, s1, s2) of DreamTime's weight: flat from m2 to m1, falling as Gaussians of width s1 above, s2 below."""
BUMP: Bump = (0.8, 0.5, 0.3, 0.1)
CELLS = 1000


def shift_time(b: Number, shift: float) -> Number:
    """SD3's resolution shift (Esser et al. 2024, section 5.3.2): t = shift b / (1 + (shift - 1) b), b in [0, 1].

    shift = 1 is the identity; the inverse is `unshift_time`. Raises ValueError unless shift > 0.
    """
    if not shift > 0:
        raise ValueError(f"got shift {shift}, expected more than 0")
    return shift * b / (1 + (shift - 1) * b)


def unshift_time(t: Number, shift: float) -> Number:
    """b of `shift_time(b, shift) = t`: b = t / (shift - (shift - 1) t). Raises ValueError unless shift > 0."""
    if not shift > 0:
        raise ValueError(f"got shift {shift}, expected more than 0")
    return t / (shift - (shift - 1) * t)


def draw(
    n: int,
    generator: Generator,
    *,
    t_min: float,
    t_max: float,
    law: Law = "uniform",
    shift: float = 1.0,
    progress: float = 0.0,
    width: float = 0.0,
    schedule: Schedule = rectified_flow,
    bump: Bump = BUMP,
    strata: int = 1,
) -> Tensor:
    """n times (n,) float32 within t_min..t_max, drawn on the CPU; with `strata` the first n / strata of them lie in the
    lowest share of the law's probability, the next in the one above it, and so on.

    uniform       the unshifted time is uniform; with shift = 1, t is
    annealed      as uniform, in a band of `width` whose centre falls from t_max to t_min as `progress` goes from 0 to
                  1, its unshifted time linearly: a sampler's path under that shift; what leaves the window is cut
                  off, width = 0 is the centre itself
    dreamtime     as annealed, but the centre is `dreamtime_at(progress)` by `schedule` and `bump`
    logit_normal  the unshifted time is sigmoid(N(0, 1)) (Esser et al. 2024), conditioned on the window

    Raises ValueError for an unknown law, a window outside 0 <= t_min <= t_max <= 1, a progress outside [0, 1], a
    negative width, an n that is no multiple of `strata`.
    """
    if not 0 <= t_min <= t_max <= 1:
        raise ValueError(f"got window {t_min}..{t_max}, expected 0 <= t_min <= t_max <= 1")
    if not 0 <= progress <= 1 or width < 0:
        raise ValueError(f"got progress {progress} and width {width}, expected 0..1 and at least 0")
    if law not in LAWS:
        raise ValueError(f"got law {law!r}, expected one of {', '.join(LAWS)}")
    if strata < 1 or n % strata:
        raise ValueError(f"got {strata} strata of {n} times, expected a divisor")
    low, high = t_min, t_max
    if law in ("annealed", "dreamtime"):
        first, last = unshift_time(t_max, shift), unshift_time(t_min, shift)
        centre = shift_time(first + progress * (last - first), shift)
        if law == "dreamtime":
            centre = dreamtime_at(progress, t_min=t_min, t_max=t_max, schedule=schedule, bump=bump)
        low, high = max(t_min, centre - width / 2), min(t_max, centre + width / 2)
    ends = unshift_time(torch.tensor([low, high], dtype=torch.float64), shift).clamp(0, 1)
    u = uniform((n,), generator, dtype=torch.float64)
    if strata > 1:
        u = (torch.arange(strata).repeat_interleave(n // strata) + u) / strata
    base: Tensor
    if law == "logit_normal":
        share = torch.special.ndtr(ends.logit())
        base = torch.special.ndtri(share[0].lerp(share[1], u)).sigmoid()
    else:
        base = ends[0].lerp(ends[1], u)
    return shift_time(base, shift).clamp(low, high).float()


def dreamtime_at(
    progress: float, *, t_min: float, t_max: float, schedule: Schedule = rectified_flow, bump: Bump = BUMP
) -> float:
    """DreamTime's time (Huang et al. 2023, arXiv 2306.12422) at a share of the run, falling from t_max to t_min.

    The integral of W from t to t_max is `progress` times that from t_min to t_max, so the run dwells where W is large.
    W = W_d W_p with W_d = sigma / alpha and W_p = exp(-(t - m1)^2 / (2 s1^2)) above m1, exp(-(t - m2)^2 / (2 s2^2))
    below m2, 1 between. Midpoint rule on `CELLS` cells. ValueError unless m2 <= m1, s1 > 0, s2 > 0.
    """
    m1, m2, s1, s2 = bump
    if not (m2 <= m1 and s1 > 0 and s2 > 0):
        raise ValueError(f"got bump {bump}, expected m2 at most m1 and widths above 0")
    if t_min == t_max:
        return t_max
    edges = torch.linspace(t_max, t_min, CELLS + 1, dtype=torch.float64)
    t = (edges[1:] + edges[:-1]) / 2
    alpha, sigma = schedule(t)
    exponent = ((t - m1).clamp(min=0) / s1) ** 2 + ((m2 - t).clamp(min=0) / s2) ** 2
    mass = (sigma / alpha * torch.exp((exponent.min() - exponent) / 2)).cumsum(0)
    wanted = progress * mass[-1]
    cell = int(torch.searchsorted(mass, wanted).clamp(max=CELLS - 1))
    before = mass[cell - 1] if cell else mass.new_zeros(())
    inside = (wanted - before) / (mass[cell] - before)
    return edges[cell].lerp(edges[cell + 1], inside).item()


def spacing(steps: int, *, t_start: float = 1.0, t_end: float = 0.0, shift: float = 1.0) -> Tensor:
    """(steps + 1,) float32 times from exactly t_start to exactly t_end, even before the shift; rising ones invert."""
    if steps < 1 or not (0 <= t_start <= 1 and 0 <= t_end <= 1):
        raise ValueError(f"got {steps} steps from {t_start} to {t_end}, expected at least 1 and times in 0..1")
    ends = unshift_time(torch.tensor([t_start, t_end], dtype=torch.float64), shift)
    times = shift_time(ends[0].lerp(ends[1], torch.linspace(0, 1, steps + 1, dtype=torch.float64)), shift)
    times[0], times[-1] = t_start, t_end
    return times.float()


def noisiest(schedule: Schedule) -> float:
    """The largest t' of a path: 1 for the straight one, below for a table (0.936 for Stable Diffusion)."""
    return float(to_straight(schedule(torch.ones(1)))[0])


def falling_times(schedule: Schedule, steps: int, *, t_start: float | None = None, shift: float = 1.0) -> Tensor:
    """(steps + 1,) times of a path from the noise level t' = `t_start` (None: the noisiest) down to 0.

    Their levels t' are even before `shift`; on a table they are its entries, evenly spaced, without shift. Raises
    ValueError for a level that the path does not have, for a shift on a table, for more steps than entries.
    """
    top = noisiest(schedule)
    t_start = top if t_start is None else t_start
    if not 0 < t_start <= top + 1e-6 or steps < 1:
        raise ValueError(
            f"got {steps} steps from t_start {t_start:g}, expected at least 1 from a level in 0..{top:.3f}"
        )
    table = schedule.table
    if table is None:
        return schedule.time_at(spacing(steps, t_start=min(t_start, 1.0), shift=shift))
    if shift != 1:
        raise ValueError(f"got shift {shift:g}, expected 1: the times of this prior are those of a table")
    first = int(table.index(table.time_at(torch.tensor([t_start])))) + 1
    if steps > first:
        raise ValueError(f"got {steps} steps, expected at most {first}, the entries below t_start {t_start:g}")
    return torch.linspace(first, 0, steps + 1).round() / len(table)


def flow_match_spacing(steps: int, *, shift: float, n: int = 1000) -> Tensor:
    """(steps + 1,) float32: the times of diffusers' FlowMatchEulerDiscreteScheduler.set_timesteps.

    They are even from 1 to the shifted smallest time, then shifted once more, then closed with 0; so the smallest
    time is shifted twice. Ours is `spacing`; this one reproduces a foreign pipeline.
    """
    base = torch.linspace(1, shift_time(1 / n, shift), steps, dtype=torch.float64)
    return torch.cat([shift_time(base, shift), base.new_zeros(1)]).float()


def ddim_steps(steps: int, n: int, *, law: Spacing = "uniform", offset: int = 0) -> Tensor:
    """Exactly `steps` different rising step numbers j in 1..n (int64); step j is the index k = j - 1 at t = j / n.

    uniform   1, 1 + n // steps, ... + offset (diffusers "leading"; offset = 1 is Stable Diffusion's steps_offset)
    trailing  the multiples of n / steps, so the last one is n (Lin et al. 2023)
    linspace  even from 1 to n, both included
    quad      floor(linspace(0, sqrt(0.8 n))^2) + 1; a step that would repeat moves up to the next number

    LDM's own "uniform" gives one step too many for steps that do not divide n, and leaves the table for some.
    Raises ValueError when the numbers do not fit into 1..n, or for an unknown law.
    """
    if not 1 <= steps <= n:
        raise ValueError(f"got {steps} steps, expected 1..{n}")
    order = torch.arange(steps)
    if law == "uniform":
        numbers = order * (n // steps) + 1 + offset
    elif law == "trailing":
        numbers = ((order + 1).double() * n / steps).round().long()
    elif law == "linspace":
        numbers = torch.linspace(0, n - 1, steps, dtype=torch.float64).round().long() + 1
    elif law == "quad":
        numbers = torch.linspace(0, (0.8 * n) ** 0.5, steps, dtype=torch.float64).square().long() + 1
        numbers = order + (numbers - order).cummax(0).values
    else:
        raise ValueError(f"got law {law!r}, expected uniform, trailing, linspace or quad")
    if int(numbers[0]) < 1 or int(numbers[-1]) > n:
        raise ValueError(f"got step numbers {int(numbers[0])}..{int(numbers[-1])}, expected 1..{n}")
    return numbers


def ddim_times(steps: int, n: int, *, law: Spacing = "uniform", offset: int = 0) -> Tensor:
    """(steps + 1,) float32 falling times of `ddim_steps` for `solve` and `ancestral`, closed with 0."""
    numbers = ddim_steps(steps, n, law=law, offset=offset)
    return torch.cat([numbers.flip(0) / n, torch.zeros(1)])


def sampling_times(steps: int, *, law: SamplingLaw, shift: float = 1.0, n: int = 1000, offset: int = 1) -> Tensor:
    """(steps + 1,) float32 times from noise to 0 of a sampler.

    leading, trailing, linspace, quad  steps of a table of n entries, see `ddim_steps`; `offset` is that of leading (1
                                       for Stable Diffusion), as far as it fits into the table: all n steps have none
    even                               `spacing` under `shift`
    flow_match                         `flow_match_spacing` under `shift`: what diffusers' SD3 pipeline does

    Raises ValueError for an unknown law and for steps that do not fit.
    """
    if law in ("trailing", "linspace", "quad"):
        return ddim_times(steps, n, law=law)
    if law == "leading":
        room = n - 1 - (steps - 1) * (n // max(steps, 1))
        return ddim_times(steps, n, offset=max(0, min(offset, room)))
    if law == "even":
        return spacing(steps, shift=shift)
    if law == "flow_match":
        return flow_match_spacing(steps, shift=shift, n=n)
    raise ValueError(f"got law {law!r}, expected leading, trailing, linspace, quad, even or flow_match")


def from_strength(times: Tensor, strength: float, *, up: bool = False) -> Tensor:
    """The last steps of falling `times` (S + 1, ...) for a start from a picture: strength S of them, rounded down.

    That is diffusers' StableDiffusionImg2ImgPipeline; its SD3 pipeline rounds `up`. strength = 1 keeps all. Raises
    ValueError for a strength outside [0, 1], or one that leaves no step.
    """
    steps = len(times) - 1
    if not 0 <= strength <= 1:
        raise ValueError(f"got strength {strength}, expected 0..1")
    kept = steps - int(steps - steps * strength) if up else int(steps * strength)
    if kept < 1:
        raise ValueError(
            f"got strength {strength} of {steps} steps, which leaves none; expected at least {1 / steps:g}"
        )
    return times[steps - kept :]
