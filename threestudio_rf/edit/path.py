"""What an editor sees of a prior: velocities on the straight path, whatever the network predicts and on which path.

A prior is a callable `predict(x_t, t, roles) -> {role: prediction}` with its `kind` and `schedule`. Behind the bridge
(x' = x_t / (alpha + sigma), t' = sigma / (alpha + sigma)) every path is the straight one, where u_hat = eps_hat -
x0_hat is dx'/dt', so editors that were written for rectified flows take noise models too. Times stay the prior's own
t; noise levels that a person states are t'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, split
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, column, rectified_flow, to_straight
from threestudio_rf.core.sample import Predict, guided
from threestudio_rf.core.solve import Field
from threestudio_rf.core.times import spacing

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Path:
    """A prior moved to the straight path, where it is of kind "flow" and its schedule is `level`.

    At t = 0 a picture is clean, t' = 0, also for a table whose sampler ends at its first level (Stable Diffusion).
    """

    predict: Predict
    schedule: Schedule
    kind: Kind

    def level(self, t: Tensor) -> Level:
        """(1 - t', t'), each (B,), at the prior's time t (B,)."""
        if self.schedule is rectified_flow:
            return self.schedule(t)
        straight, _ = self._bridge(t)
        return Level(1 - straight, straight)

    def time(self, straight: Tensor) -> Tensor:
        """The prior's time (B,) at the noise level t' (B,), on a table the nearest entry's."""
        if not isinstance(self.schedule, DiscreteVP):
            return straight
        return self.schedule.time(self.schedule.index(self.schedule.time_at(straight))).to(straight)

    def velocity(self, role: str, scale: float) -> Field:
        """u_hat (B, ...) at x (B, ...) on the straight path and the prior's t (B,), under guidance.

        uncond + scale (role - uncond); scale = 1 asks for `role` alone, scale = 0 for "uncond" alone, others for both
        in one call.
        """

        def named(x_t: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
            asked = {one: role if one == "cond" else one for one in roles}
            found = self.predict(x_t, t, list(asked.values()))
            return {one: found[name] for one, name in asked.items()}

        field = guided(named, scale, schedule=self.schedule, kind=self.kind)
        if self.kind == "flow" and self.schedule is rectified_flow:
            return field

        def moved(x: Tensor, t: Tensor) -> Tensor:
            level, (_, norm) = self.schedule(t), self._bridge(t)
            x_t = column(norm, x) * x
            return join("flow", *split(self.kind, field(x_t, t), x_t, level), level)

        return moved

    def _bridge(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t' and the factor alpha + sigma of the prior's x_t; 0 and 1 at t = 0."""
        straight, norm = to_straight(self.schedule(t))
        return torch.where(t > 0, straight, 0), torch.where(t > 0, norm, 1)


def noisiest(schedule: Schedule) -> float:
    """The largest t' of a prior: 1 for the straight path, below for a table (0.936 for Stable Diffusion)."""
    return float(to_straight(schedule(torch.ones(1)))[0])


def falling_times(schedule: Schedule, steps: int, *, t_start: float | None = None, shift: float = 1.0) -> Tensor:
    """(steps + 1,) times of the prior from the noise level t' = `t_start` (None: the noisiest) down to 0.

    On the straight path they are even before `shift`; on a table they are its entries, evenly spaced, without shift.
    Raises ValueError for a level that the prior does not have, for a shift on a table, for more steps than entries.
    """
    top = noisiest(schedule)
    t_start = top if t_start is None else t_start
    if not 0 < t_start <= top + 1e-6 or steps < 1:
        raise ValueError(
            f"got {steps} steps from t_start {t_start:g}, expected at least 1 from a level in 0..{top:.3f}"
        )
    if not isinstance(schedule, DiscreteVP):
        return spacing(steps, t_start=min(t_start, 1.0), shift=shift)
    if shift != 1:
        raise ValueError(f"got shift {shift:g}, expected 1: the times of this prior are those of a table")
    first = int(schedule.index(schedule.time_at(torch.tensor([t_start])))) + 1
    if steps > first:
        raise ValueError(f"got {steps} steps, expected at most {first}, the entries below t_start {t_start:g}")
    return torch.linspace(first, 0, steps + 1).round() / len(schedule)
