"""The sampling path of every prior: a guided field, a sampler by name, and what may change the state between steps.

A prior is a callable `predict(x_t, t, roles) -> {role: prediction}` that answers all roles in one network call, its
`schedule` and its `kind`; the losses ask the same callable, so that labels, signs and scales cannot differ.

    field = guided(predict, 5.0, schedule=schedule, kind=kind)
    *_, last = states(field, noise, times, schedule=schedule, kind=kind, rule=Rule("ddim", eta=1.0), generator=draws)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, noise, same_shape, split
from threestudio_rf.core.ddpm import After, ancestral_loop, respaced
from threestudio_rf.core.guide import cfg, combine, perp_neg, rescale
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, column
from threestudio_rf.core.random import Draws
from threestudio_rf.core.solve import Field, Map, ancestral, heun, midpoint, solve

Predict = Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]]
Corrector = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Score corrector: (eps_hat (B, ...), x_t (B, ...), t (B,)) -> eps_hat."""

Sampler = Literal["ddpm", "ddim", "euler", "heun", "midpoint"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


class State(NamedTuple):
    """Where a run stands after a step: how many steps are left, the time (B,) of x (B, ...), and the x0_hat (B, ...)
    that the step's first prediction implied, behind `limit`."""

    left: int
    t: Tensor
    x: Tensor
    x0_hat: Tensor


@dataclass(frozen=True)
class Rule:
    """A sampler and its options; ValueError for one that the sampler has no use for.

    ddpm      the ancestral chain on the entries of a table that the times name (Ho et al. 2020), with its `variance`
    ddim      Song et al. 2021: `eta` is the share of fresh noise, 0 none, 1 as much as ddpm, on any path
    euler     order 1 on the straight path, or behind the bridge to it; there it is ddim with eta = 0
    heun, midpoint  order 2, likewise

    `limit` maps every x0_hat (`ddpm.clip`, `ddpm.dynamic_threshold`); `temperature`, `repeat_noise` and `noise_dropout`
    change fresh noise (`solve.fresh`).
    """

    sampler: Sampler = "euler"
    eta: float = 0.0
    variance: Literal["small", "large"] = "small"
    limit: Map | None = None
    temperature: float = 1.0
    repeat_noise: bool = False
    noise_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"got sampler {self.sampler!r}, expected one of {', '.join(SAMPLERS)}")
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


def guided(
    predict: Predict,
    scale: float,
    *,
    schedule: Schedule,
    kind: Kind,
    rescaled: float = 0.0,
    negatives: Mapping[str, float] | None = None,
    corrector: Corrector | None = None,
) -> Field:
    """The field uncond + scale (cond - uncond), asked in one call in the order [uncond, cond].

    scale = 1 asks for "cond" alone, scale = 0 for "uncond" alone. `negatives` are roles with Perp-Neg's weights
    (`guide.perp_neg`). `rescaled` is the share of guidance rescale (Lin et al. 2023). Last, `corrector` changes
    eps_hat at a given x_t (LDM's score corrector); where alpha = 0 x_t is the noise itself and nothing is corrected.
    """
    away = dict(negatives or {})
    weights = cfg(scale)
    roles = ["uncond", "cond", *away] if away else [role for role in ("uncond", "cond") if role in weights]

    def field(x: Tensor, t: Tensor) -> Tensor:
        parts = predict(x, t, roles)
        if away:
            chosen = [parts[role] for role in away]
            p = perp_neg(parts["cond"], parts["uncond"], chosen, weights=list(away.values()), scale=scale)
        else:
            p = combine(parts, weights)
        if rescaled and "cond" in parts and len(parts) > 1:
            p = rescale(p, parts["cond"], share=rescaled)
        return p if corrector is None else corrected(p, x, t, corrector=corrector, level=schedule(t), kind=kind)

    return field


def corrected(p: Tensor, x: Tensor, t: Tensor, *, corrector: Corrector, level: Level, kind: Kind) -> Tensor:
    """The prediction (B, ...) of `kind` whose eps_hat is the corrected one; unchanged where alpha = 0, per sample."""
    _, eps_hat = split(kind, p, x, level)
    eps = corrector(eps_hat, x, t)
    same_shape(eps, eps_hat)
    open_ = level.alpha > 0
    alpha = torch.where(open_, level.alpha, torch.ones_like(level.alpha))
    x0_hat, eps = split("eps", eps, x, Level(alpha, level.sigma))
    return torch.where(column(open_, x) > 0, join(kind, x0_hat, eps, level), p)


def keep(x0: Tensor, eps: Tensor, mask: Tensor, *, schedule: Schedule) -> After:
    """Inpainting: what is known is put back after every step, re-noised to the level of the state.

    `x0` and `eps` (B, C, h, w) are the known latents and one noise for the whole run, `mask` (B or 1, 1 or C, h, w) is
    1 where the picture is made anew, 0 where it is known. At t = 0 the known part is x0 exactly, whatever the final
    level of the schedule. This is diffusers' inpainting with a network that does not see the mask; LDM draws a new
    noise each time and leaves the last step unblended. ValueError when shapes do not fit.
    """
    same_shape(x0, eps)
    shared = all(m in (1, n) for m, n in zip(mask.shape, x0.shape, strict=False))
    if mask.ndim != x0.ndim or mask.shape[2:] != x0.shape[2:] or not shared:
        raise ValueError(
            f"got a mask of shape {tuple(mask.shape)} for latents {tuple(x0.shape)}, expected (B, 1, h, w)"
        )

    def after(x: Tensor, t: Tensor) -> Tensor:
        known = torch.where(column(t, x) > 0, noise(x0, eps, schedule(t)), x0)
        return torch.lerp(known, x, mask.to(x).expand_as(x))

    return after


def states(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    kind: Kind,
    rule: Rule | None = None,
    generator: Draws | None = None,
    after: After | None = None,
) -> Iterator[State]:
    """One state per step from x (B, ...) along `times` (S + 1,) or (S + 1, B), by the sampler of `rule`.

    Falling times sample, rising ones invert. `generator` is needed where fresh noise is drawn: one for the batch, or
    one per sample. `after` changes x behind each step (`keep`). Raises ValueError when the sampler does not fit the
    path (ddpm needs a table, and times that fall to 0), or when noise meets rising times.
    """
    rule = Rule() if rule is None else rule
    if rule.noisy and generator is None:
        raise ValueError(f"got no generator, expected one for the noise of {rule.sampler}")
    if rule.sampler == "ddpm":
        return _chain(field, x, times, schedule=schedule, kind=kind, rule=rule, generator=generator, after=after)
    return _steps(field, x, times, schedule=schedule, kind=kind, rule=rule, generator=generator, after=after)


def invert(
    field: Field, x0: Tensor, times: Tensor, *, schedule: Schedule, kind: Kind, rule: Rule | None = None
) -> Iterator[State]:
    """The states from clean x0 (B, ...) to the noise of the falling `times`: the same sampler along them reversed.

    Sampling from the last state along `times` comes back to x0, up to the solver's error. ValueError for a sampler
    that draws noise: DDIM is reversed with eta = 0.
    """
    rule = Rule() if rule is None else rule
    if rule.noisy:
        raise ValueError(f"got sampler {rule.sampler} with fresh noise, expected one without (ddim has eta = 0)")
    return states(field, x0, times.flip(0), schedule=schedule, kind=kind, rule=rule)


def intermediates(run: Iterable[State], every: int) -> list[State]:
    """The states after the first step, after the last, and wherever the number of steps left is a multiple of `every`
    (LDM's log_every_t). ValueError for `every` below 1."""
    if every < 1:
        raise ValueError(f"got every {every}, expected at least 1")
    return [state for number, state in enumerate(run) if number == 0 or state.left % every == 0]


class _First:
    """A limit that keeps the first x0_hat of a step, behind the limit that is asked for."""

    def __init__(self, limit: Map | None) -> None:
        self.limit = limit
        self.seen: list[Tensor] = []

    def __call__(self, x0_hat: Tensor) -> Tensor:
        x0_hat = x0_hat if self.limit is None else self.limit(x0_hat)
        self.seen.append(x0_hat)
        return x0_hat


def _steps(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    kind: Kind,
    rule: Rule,
    generator: Draws | None,
    after: After | None,
) -> Iterator[State]:
    for number in range(1, max(len(times), 2)):
        first, pair = _First(rule.limit), times[number - 1 : number + 1]
        (x,) = _solver(field, x, pair, schedule=schedule, kind=kind, rule=rule, generator=generator, limit=first)
        t_next = pair[1].to(x.device).expand(len(x))
        x = x if after is None else after(x, t_next)
        yield State(len(times) - 1 - number, t_next, x, first.seen[0])


def _solver(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    kind: Kind,
    rule: Rule,
    generator: Draws | None,
    limit: Map,
) -> Iterator[Tensor]:
    if generator is None or not rule.noisy:
        solver = {"heun": heun, "midpoint": midpoint}.get(rule.sampler, solve)
        return solver(field, x, times, schedule=schedule, kind=kind, limit=limit)
    return ancestral(
        field,
        x,
        times,
        schedule=schedule,
        kind=kind,
        eta=rule.eta,
        generator=generator,
        limit=limit,
        temperature=rule.temperature,
        repeat_noise=rule.repeat_noise,
        noise_dropout=rule.noise_dropout,
    )


def _chain(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    schedule: Schedule,
    kind: Kind,
    rule: Rule,
    generator: Draws | None,
    after: After | None,
) -> Iterator[State]:
    if not isinstance(schedule, DiscreteVP):
        raise ValueError(
            "got sampler ddpm on a path without a table of betas, expected another one (ddim with eta = 1)"
        )
    assert generator is not None
    loop = ancestral_loop(
        respaced(schedule, times),
        field,
        x,
        kind=kind,
        generator=generator,
        variance=rule.variance,
        limit=rule.limit,
        temperature=rule.temperature,
        repeat_noise=rule.repeat_noise,
        noise_dropout=rule.noise_dropout,
        times=times,
        after=after,
    )
    heard = times.to(x.device)
    for number, state in enumerate(loop, 1):
        yield State(state.k, heard[number].expand(len(x)), state.x, state.x0_hat)
