"""A frozen prior as every loss, sampler and editor asks it, and its predictions under guidance.

A `Model` answers roles ("cond", "uncond", ...) in one network call. `field` combines them by guidance into one
prediction at every (x, t), a `Field`; that is what a solver walks through, and what an editor compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, same_shape, split
from threestudio_rf.core.guide import cfg, combine, perp_neg, renorm, rescale, within
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, column, rectified_flow, to_straight

Predict = Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]]
"""(x_t (B, ...), t (B,), roles) -> prediction (B, ...) per role."""
Map = Callable[[Tensor], Tensor]
Corrector = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Score corrector: (eps_hat (B, ...), x_t (B, ...), t (B,)) -> eps_hat."""


class Hats(NamedTuple):
    """What a prediction says about x_t = alpha x0 + sigma eps: x0_hat and eps_hat, each (B, ...)."""

    x0: Tensor
    eps: Tensor


def read(kind: Kind, p: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Hats:
    """x0_hat and eps_hat of a prediction p (B, ...) of `kind` at x (B, ...) and t (B,).

    A prediction of x0 says nothing about eps where sigma = 0. On a table the network hears the first entry there, so
    eps_hat is read at that entry's level; ValueError on a path without one.
    """
    level = schedule(t)
    if kind == "x0" and bool((level.sigma == 0).any()):
        if schedule.table is None:
            raise ValueError(
                "got a prediction of x0 at t = 0, where x0 says nothing about eps; "
                "expected a time above 0 (start there), or a prior that predicts eps, v or flow"
            )
        level = schedule(t.clamp(min=1 / len(schedule.table)))
    return Hats(*split(kind, p, x, level))


@dataclass(frozen=True)
class Field:
    """One prediction of `kind` at every x (B, ...) and t (B,) of `schedule`: `ask(x, t)`."""

    ask: Callable[[Tensor, Tensor], Tensor]
    kind: Kind
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction (B, ...)."""
        return self.ask(x, t)

    def hats(self, x: Tensor, t: Tensor, limit: Map | None = None) -> Hats:
        """x0_hat, behind `limit`, and eps_hat, each (B, ...); eps_hat stays the prediction's, as in LDM and diffusers.
        ValueError as `read`."""
        x0_hat, eps_hat = read(self.kind, self.ask(x, t), x, t, self.schedule)
        return Hats(x0_hat if limit is None else limit(x0_hat), eps_hat)

    def straight(self) -> Field:
        """The same predictions on the straight path, of kind "flow": u_hat = eps_hat - x0_hat = dx'/dt' at
        x' = x_t / (alpha + sigma). Times stay the prior's own t, the schedule is `Bridge`'s."""
        if self.kind == "flow" and self.schedule is rectified_flow:
            return self
        bridge = Bridge(self.schedule)

        def moved(x: Tensor, t: Tensor) -> Tensor:
            x_t = column(bridge.norm(t), x) * x
            return join("flow", *read(self.kind, self.ask(x_t, t), x_t, t, self.schedule), self.schedule(t))

        return Field(moved, "flow", bridge)


@dataclass(frozen=True)
class Bridge:
    """The levels (1 - t', t') of the straight path at the times t of another one, t' = sigma / (alpha + sigma).

    At t = 0 a picture is clean, t' = 0, also for a table whose sampler ends at its first level (Stable Diffusion).
    """

    of: Schedule
    table: DiscreteVP | None = None

    def __call__(self, t: Tensor) -> Level:
        """(1 - t', t'), each (B,)."""
        if self.of is rectified_flow:
            return self.of(t)
        straight = torch.where(t > 0, to_straight(self.of(t))[0], 0)
        return Level(1 - straight, straight)

    def norm(self, t: Tensor) -> Tensor:
        """The factor alpha + sigma (B,) of the prior's x_t; 1 at t = 0."""
        return torch.where(t > 0, to_straight(self.of(t))[1], 1)

    def time_at(self, straight: Tensor) -> Tensor:
        """The other path's time (B,) at t' (B,)."""
        return self.of.time_at(straight)


@dataclass
class Model:
    """A prior bound to its prompts. `calls` counts network calls per sample: every role that is asked for adds one."""

    predict: Predict
    kind: Kind
    schedule: Schedule
    calls: int = 0

    def __call__(self, x_t: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        """Predictions (B, ...) of `kind` at x_t (B, ...) and t (B,), one per role, in one network call."""
        found = self.predict(x_t, t, roles)
        self.calls += len(roles)
        return found

    def hats(self, x_t: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Hats]:
        """x0_hat and eps_hat per role, in the dtype of x_t; ValueError as `read`."""
        found = self(x_t, t, roles)
        return {role: read(self.kind, p.to(x_t), x_t, t, self.schedule) for role, p in found.items()}

    def field(
        self,
        scale: float = 1.0,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
        role: str = "cond",
        rescaled: float = 0.0,
        lengths: Map | None = None,
        negatives: Mapping[str, float] | None = None,
        corrector: Corrector | None = None,
        base: str = "uncond",
    ) -> Field:
        """uncond + scale (role - uncond), asked in one call in the order [uncond, role]; `base` is the role of uncond.

        scale = 1 asks for `role` alone, scale = 0 for `base` alone. Outside of the `interval` of t it is 1
        (`guide.within`). `negatives` are roles with Perp-Neg's weights
        (`guide.perp_neg`). `rescaled` is the share of guidance rescale (Lin et al. 2023), `lengths` those
        that the guided prediction keeps of `role`'s (`guide.renorm`). Last, `corrector` changes
        eps_hat at a given x_t (LDM's score corrector); where alpha = 0 x_t is the noise itself and nothing changes.
        """
        away = dict(negatives or {})
        names = {"cond": role, "uncond": base}

        def guided(x: Tensor, t: Tensor) -> Tensor:
            s = within(scale, t, interval)
            weights = cfg(s)
            asked = ["uncond", "cond", *away] if away else [name for name in ("uncond", "cond") if name in weights]
            found = self(x, t, [names.get(name, name) for name in asked])
            parts = {name: found[names.get(name, name)] for name in asked}
            if away:
                chosen = [parts[name] for name in away]
                p = perp_neg(parts["cond"], parts["uncond"], chosen, weights=list(away.values()), scale=s)
            else:
                p = combine(parts, weights)
            if lengths is not None and "cond" in parts and len(parts) > 1:
                p = renorm(p, parts["cond"], lengths=lengths)
            if rescaled and "cond" in parts and len(parts) > 1:
                p = rescale(p, parts["cond"], share=rescaled)
            return p if corrector is None else corrected(p, x, t, corrector, level=self.schedule(t), kind=self.kind)

        return Field(guided, self.kind, self.schedule)


def corrected(p: Tensor, x: Tensor, t: Tensor, corrector: Corrector, *, level: Level, kind: Kind) -> Tensor:
    """The prediction (B, ...) of `kind` whose eps_hat is the corrected one; unchanged where alpha = 0, per sample."""
    _, eps_hat = split(kind, p, x, level)
    eps = corrector(eps_hat, x, t)
    same_shape(eps, eps_hat)
    open_ = level.alpha > 0
    alpha = torch.where(open_, level.alpha, torch.ones_like(level.alpha))
    x0_hat, eps = split("eps", eps, x, Level(alpha, level.sigma))
    return torch.where(column(open_, x) > 0, join(kind, x0_hat, eps, level), p)
