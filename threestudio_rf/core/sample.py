"""Sampling and inversion: the one loop over a solver's steps, and what may change the state between them.

field = bind(prior, conditions).field(5.0)
*_, last = states(field, noise, times, rule=Rule("ddim", eta=1.0), generator=draws)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import noise, same_shape
from threestudio_rf.core.level import Schedule, column
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import Draws
from threestudio_rf.core.solve import STEPS, Memory, Rule

After = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), its time (B,)) -> x: what may change the state between two steps, such as `keep`."""
EULER = Rule()


class State(NamedTuple):
    """Where a run stands after a step: how many steps are left, the time (B,) of x (B, ...), and the x0_hat (B, ...)
    of the step, behind `limit`."""

    left: int
    t: Tensor
    x: Tensor
    x0_hat: Tensor


def states(
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    rule: Rule = EULER,
    generator: Draws | None = None,
    after: After | None = None,
) -> Iterator[State]:
    """One state per step from x (B, ...) along `times` (S + 1,), shared by the batch, or (S + 1, B).

    Falling times sample, rising ones invert. `generator` is needed where fresh noise is drawn: one for the batch, or
    one per sample. `after` changes x behind each step (`keep`). Raises ValueError for times of another shape, when the
    sampler does not fit the path (ddpm needs a table, and times that fall), or when noise meets rising times.
    """
    if times.ndim not in (1, 2) or len(times) < 2 or (times.ndim == 2 and times.shape[1] != len(x)):
        raise ValueError(f"got times {tuple(times.shape)}, expected (S + 1,) or (S + 1, {len(x)}) with S at least 1")
    if rule.noisy and generator is None:
        raise ValueError(f"got no generator, expected one for the noise of {rule.sampler}")
    return _walk(field, x, times, rule, generator, after)


def _walk(
    field: Field, x: Tensor, times: Tensor, rule: Rule, draws: Draws | None, after: After | None
) -> Iterator[State]:
    step, left = STEPS[rule.sampler], len(times) - 1
    memory: Memory | None = None
    grid = times.to(x.device).reshape(len(times), -1).expand(-1, len(x))
    for t, s in pairwise(grid):
        taken = step(field, x, t, s, rule=rule, draws=draws, memory=memory)
        memory, left = taken.memory, left - 1
        x = taken.x if after is None else after(taken.x, s)
        yield State(left, s, x, taken.x0_hat)


def solve(
    field: Field, x: Tensor, times: Tensor, *, rule: Rule = EULER, generator: Draws | None = None
) -> Iterator[Tensor]:
    """The x (B, ...) of `states` alone."""
    return (state.x for state in states(field, x, times, rule=rule, generator=generator))


def invert(field: Field, x0: Tensor, times: Tensor, *, rule: Rule = EULER) -> Iterator[State]:
    """The states from clean x0 (B, ...) to the noise of the falling `times`: the same sampler along them reversed.

    Sampling from the last state along `times` comes back to x0, up to the solver's error. ValueError for a sampler
    that draws noise: DDIM is reversed with eta = 0.
    """
    if rule.noisy:
        raise ValueError(f"got sampler {rule.sampler} with fresh noise, expected one without (ddim has eta = 0)")
    return states(field, x0, times.flip(0), rule=rule)


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


def intermediates(run: Iterable[State], every: int) -> list[State]:
    """The states after the first step, after the last, and wherever the number of steps left is a multiple of `every`
    (LDM's log_every_t). ValueError for `every` below 1."""
    if every < 1:
        raise ValueError(f"got every {every}, expected at least 1")
    return [state for number, state in enumerate(run) if number == 0 or state.left % every == 0]
