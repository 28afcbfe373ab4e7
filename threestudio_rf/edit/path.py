"""What an editor sees of a prior: velocities on the straight path, whatever the network predicts and on which path.

Behind the bridge (x' = x_t / (alpha + sigma), t' = sigma / (alpha + sigma)) every path is the straight one, where
u_hat = eps_hat - x0_hat is dx'/dt', so editors that were written for rectified flows take noise models too. Times stay
the prior's own t; noise levels that a person states are t'.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from threestudio_rf.core.level import Schedule
from threestudio_rf.core.model import Bridge, Field, Model

SOURCE, TARGET = "source", "target"


@dataclass(frozen=True)
class Path:
    """A model moved to the straight path, where it is of kind "flow" and its schedule is `level`."""

    model: Model

    @property
    def schedule(self) -> Schedule:
        """The model's own."""
        return self.model.schedule

    @property
    def level(self) -> Bridge:
        """(1 - t', t') at the prior's time t."""
        return Bridge(self.model.schedule)

    def time(self, straight: Tensor) -> Tensor:
        """The prior's time (B,) at the noise level t' (B,), on a table the nearest entry's."""
        t, table = self.schedule.time_at(straight), self.schedule.table
        return t if table is None else table.time(table.index(t)).to(straight)

    def velocity(self, role: str, scale: float, *, base: str = "uncond") -> Field:
        """u_hat (B, ...) at x (B, ...) on the straight path and the prior's t (B,), under guidance as `Model.field`."""
        return self.model.field(scale, role=role, base=base).straight()
