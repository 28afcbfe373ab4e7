"""Solvers as single steps from a time to the next: falling times sample, rising ones invert.

    taken = STEPS[rule.sampler](field, x, t, s, rule=rule, draws=draws, memory=memory)

A step goes from x (B, ...) at t (B,) to s (B,), each sample at its own times, and keeps in `memory` what the next one
needs; `sample.states` is the loop. At t = 0 of a straight path or a clean table the level is alpha = 1, sigma = 0 and a
first-order step ends exactly in x0_hat. Rules of order 2 for the straight path work on other paths behind the bridge to
it, where every path moves with velocity eps_hat - x0_hat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import join, noise, split
from threestudio_rf.core.level import Level, column
from threestudio_rf.core.model import Field, Hats, Map
from threestudio_rf.core.random import Draws, normal, uniform


class Step(NamedTuple):
    """x (B, ...) at the next time, x0_hat behind `limit` and eps_hat of the step's prediction, and what the next step
    needs of it."""

    x: Tensor
    x0_hat: Tensor
    eps_hat: Tensor
    memory: Memory | None = None


class Memory(NamedTuple):
    """What a multistep rule keeps of a step: its velocity or x0_hat (B, ...), and the time (B,) it belongs to."""

    value: Tensor
    t: Tensor


@dataclass(frozen=True)
class Rule:
    """A sampler and its options; ValueError for one that the sampler has no use for.

    ddpm      the ancestral chain on the entries of a table that the times name (Ho et al. 2020), with its `variance`
    ddim      Song et al. 2021: `eta` is the share of fresh noise, 0 none, 1 as much as ddpm, on any path
    euler     order 1 on the straight path, or behind the bridge to it; there it is ddim with eta = 0
    heun, midpoint  order 2, two calls per step
    fireflow  order 2, one call per step and one more for the first (Deng et al. 2024)
    dpmpp_2m  DPM-Solver++(2M), order 2, one call per step (Lu et al. 2022)

    `limit` maps every x0_hat (`ddpm.clip`, `ddpm.dynamic_threshold`); `temperature`, `repeat_noise` and `noise_dropout`
    change fresh noise (`fresh`).
    """

    sampler: str = "euler"
    eta: float = 0.0
    variance: Literal["small", "large"] = "small"
    limit: Map | None = None
    temperature: float = 1.0
    repeat_noise: bool = False
    noise_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in STEPS:
            raise ValueError(f"got sampler {self.sampler!r}, expected one of {', '.join(STEPS)}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"got eta {self.eta}, expected 0..1")
        given = {
            "eta": (self.eta > 0, self.sampler == "ddim"),
            "variance": (self.variance != "small", self.sampler == "ddpm"),
            "temperature": (self.temperature != 1, self.noisy),
            "repeat_noise": (self.repeat_noise, self.noisy),
            "noise_dropout": (self.noise_dropout > 0, self.noisy),
        }
        for name, (asked, useful) in given.items():
            if asked and not useful:
                draws = f"eta = {self.eta:g}, which draws no noise" if self.sampler == "ddim" else "this sampler"
                raise ValueError(f"got {name} with sampler {self.sampler}, expected none with {draws}")

    @property
    def noisy(self) -> bool:
        """Whether fresh noise is drawn."""
        return self.sampler == "ddpm" or self.eta > 0

    def fresh(self, x: Tensor, draws: Draws | None) -> Tensor:
        """`fresh` with these options; ValueError without a generator."""
        if draws is None:
            raise ValueError(f"got no generator, expected one for the noise of {self.sampler}")
        options = (self.temperature, self.repeat_noise, self.noise_dropout)
        return fresh(x, draws, temperature=options[0], repeat_noise=options[1], noise_dropout=options[2])


def first_order(field: Field, x: Tensor, t: Tensor, s: Tensor, limit: Map | None = None) -> Step:
    """The first-order step: DDIM (Song et al. 2021) on a variance-preserving path, Euler on the straight one."""
    hats = field.hats(x, t, limit)
    return Step(noise(*hats, field.schedule(s)), *hats)


def euler(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """`first_order`."""
    return first_order(field, x, t, s, rule.limit)


def midpoint(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """The explicit midpoint rule, order 2, two calls; on the straight path it is RF-Solver's second order."""
    half = (t + s) / 2
    hats = field.hats(x, t, rule.limit)
    middle = field.hats(noise(*hats, field.schedule(half)), half, rule.limit)
    velocity = join("flow", *middle, field.schedule(half))
    return Step(noise(*split("flow", velocity, x, field.schedule(t)), field.schedule(s)), *hats)


def heun(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """Heun's rule, order 2, two calls: the mean of the velocities at both ends of an Euler step.

    As in Karras et al. 2022 a step to t = 0 is Euler's, so no network is asked about clean data.
    """
    now, after = field.schedule(t), field.schedule(s)
    hats = field.hats(x, t, rule.limit)
    ahead = noise(*hats, after)
    if bool((s == 0).all()):
        return Step(ahead, *hats)
    second = join("flow", *field.hats(ahead, s, rule.limit), after)
    velocity = (join("flow", *hats, now) + second) / 2
    return Step(torch.where(column(s, x) > 0, noise(*split("flow", velocity, x, now), after), ahead), *hats)


def fireflow(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """FireFlow (Deng et al. 2024, arXiv 2412.07517): the midpoint rule whose half step reuses the last midpoint's
    velocity, so that a step costs one call, the first one two. Order 2. x0_hat is the midpoint velocity's."""
    now, half = field.schedule(t), (t + s) / 2
    velocity = _velocity(field, x, t, rule) if memory is None else memory.value
    x_half = noise(*split("flow", velocity, x, now), field.schedule(half))
    velocity = _velocity(field, x_half, half, rule)
    hats = Hats(*split("flow", velocity, x, now))
    return Step(noise(*hats, field.schedule(s)), *hats, Memory(velocity, half))


def _velocity(field: Field, x: Tensor, t: Tensor, rule: Rule) -> Tensor:
    """u_hat (B, ...) at t."""
    if field.kind == "flow" and rule.limit is None:
        return field(x, t)
    return join("flow", *field.hats(x, t, rule.limit), field.schedule(t))


def dpmpp_2m(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): exact for an x0_hat that is linear in lambda =
    log(alpha / sigma), of which this prediction and the last one are two points. Order 2, one call.

    With D = x0_hat + (x0_hat - the last one) h / (2 h_last) the step is x_s = alpha_s D + sigma_s (x - alpha_t D) /
    sigma_t. The first step and one to sigma = 0 are of order 1.
    """
    now, after = field.schedule(t), field.schedule(s)
    hats = field.hats(x, t, rule.limit)
    d = hats.x0
    if memory is not None:
        before, here, there = (_lambda(level) for level in (field.schedule(memory.t), now, after))
        share = (there - here) / (2 * (here - before))
        d = d + column(torch.where(share.isfinite(), share, 0), x) * (d - memory.value)
    some = now.sigma > 0
    implied = split("x0", d, x, Level(now.alpha, torch.where(some, now.sigma, 1)))[1]
    eps = torch.where(column(some, x) > 0, implied, hats.eps)
    return Step(noise(d, eps, after), *hats, Memory(hats.x0, t))


def _lambda(level: Level) -> Tensor:
    """Half the logarithm of the signal-to-noise ratio, in float64."""
    return level.alpha.double().log() - level.sigma.double().log()


def ddim(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """DDIM with noise (Song et al. 2021, eq. 12, 16): eta = 0 is `euler`, eta = 1 on all N steps is DDPM. ValueError
    when times rise while eta > 0, or without a generator."""
    if rule.eta == 0:
        return first_order(field, x, t, s, rule.limit)
    now, after = field.schedule(t.double()), field.schedule(s.double())
    kick = fresh_noise(now, after, eta=rule.eta)
    kept = Level(after.alpha, (after.sigma**2 - kick**2).clamp(min=0).sqrt())
    hats = field.hats(x, t, rule.limit)
    return Step(noise(noise(*hats, kept), rule.fresh(x, draws), Level(torch.ones_like(kick), kick)), *hats)


def ddpm(
    field: Field, x: Tensor, t: Tensor, s: Tensor, *, rule: Rule, draws: Draws | None, memory: Memory | None
) -> Step:
    """One step of the ancestral chain on the entries of a table at t and s (Ho et al. 2020; with fewer steps
    improved-diffusion's SpacedDiffusion and diffusers' DDPMScheduler). The end is clean and without noise whatever the
    table's own. ValueError for a path without a table, and for times that do not fall."""
    table = field.schedule.table
    if table is None:
        raise ValueError(
            "got sampler ddpm on a path without a table of betas, expected another one (ddim with eta = 1)"
        )
    k, k_next, clean = table.index(t), table.index(s), s == 0
    if not bool((clean | (k > k_next)).all()):
        raise ValueError(f"got times of the entries {k.tolist()} and {k_next.tolist()}, expected falling ones")
    abar, abar_next = (table.abar.to(t.device)[entry] for entry in (k, k_next))
    abar_next = torch.where(clean, 1.0, abar_next)
    beta = 1 - abar / abar_next
    hats = field.hats(x, t, rule.limit)
    c1, c2 = beta * abar_next.sqrt() / (1 - abar), (1 - abar_next) * (1 - beta).sqrt() / (1 - abar)
    variance = beta if rule.variance == "large" else beta * (1 - abar_next) / (1 - abar)
    deviation = torch.where(clean, 0.0, variance).sqrt()
    mean = column(c1, x) * hats.x0 + column(c2, x) * x
    return Step(mean + column(deviation, x) * rule.fresh(x, draws), *hats)


Solver = Callable[..., Step]
STEPS: dict[str, Solver] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "midpoint": midpoint,
    "heun": heun,
    "fireflow": fireflow,
    "dpmpp_2m": dpmpp_2m,
}
"""Every sampler by name, for sampling and editing alike."""
QUIET = tuple(name for name in STEPS if name not in ("ddpm", "ddim"))
"""Those that never draw noise, so that they invert too."""
SECOND = ("midpoint", "heun", "fireflow", "dpmpp_2m")
"""Those of order 2."""


def fresh(
    x: Tensor, generator: Draws, *, temperature: float = 1.0, repeat_noise: bool = False, noise_dropout: float = 0.0
) -> Tensor:
    """The noise (B, ...) of one step, in the dtype and on the device of x (B, ...).

    `repeat_noise` shares it within the batch (it is the first of several generators that draws it), `temperature`
    scales it, `noise_dropout` zeroes that share of it and scales the rest by 1 / (1 - share).
    """
    shape = (1, *x.shape[1:]) if repeat_noise else x.shape
    if repeat_noise and isinstance(generator, Sequence):
        generator = generator[0]
    z = normal(shape, generator, device=x.device, dtype=x.dtype)
    if noise_dropout > 0:
        z = z * (uniform(shape, generator, device=x.device) >= noise_dropout) / (1 - noise_dropout)
    return (temperature * z).expand(x.shape)


def fresh_noise(now: Level, after: Level, *, eta: float) -> Tensor:
    """The standard deviation (B,) of the noise that a step from `now` to the cleaner `after` replaces.

    eta times the deviation of q(x_s | x_t, x0) for any Gaussian path: sigma_s / sigma_t sqrt(sigma_t^2 -
    (alpha_t sigma_s / alpha_s)^2); with alpha^2 + sigma^2 = 1 this is DDIM's eq. 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"got eta {eta}, expected 0..1")
    if eta == 0:
        return torch.zeros_like(after.sigma)
    falls = (after.sigma * now.alpha <= now.sigma * after.alpha) & (after.alpha > 0) & (now.sigma > 0)
    if not bool(falls.all()):
        raise ValueError(f"got a step from sigma {now.sigma} to {after.sigma}, expected falling times when eta > 0")
    added = now.sigma**2 - (now.alpha * after.sigma / after.alpha) ** 2
    return eta * after.sigma / now.sigma * added.clamp(min=0).sqrt()
