"""A folder's scheduler: what scheduler_config.json says about sampling, and where diffusers' own pipeline would stop.

| scheduler of the folder         | steps are taken by | stops and labels                                   |
|---------------------------------|--------------------|----------------------------------------------------|
| DDIM, DDPM                      | ddim, ddpm         | timestep_spacing, with the pipeline's steps_offset |
| PNDM                            | ddim (said)        | as DDIM's                                          |
| EulerDiscrete                   | euler              | diffusers' own, labels between entries included    |
| DPMSolverMultistep              | dpmpp_2m           | diffusers' own                                     |
| UniPCMultistep                  | dpmpp_2m (said)    | diffusers' own                                     |
| FlowMatchEuler, FlowMatchHeun   | euler, heun        | shift static or dynamic, terminal, karras, ...     |
| any other                       | ddim, euler (said) | as DDIM's, even ones for a flow                    |

diffusers is asked for its numbers (timesteps, sigmas) only; the steps are core's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.grid import Grid, grid_of
from threestudio_rf.core.level import DiscreteVP, Level, Schedule, rectified_flow
from threestudio_rf.core.solve import SECOND
from threestudio_rf.core.times import flow_match_spacing
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import Table
from threestudio_rf.priors.folder.load import quiet
from threestudio_rf.priors.sampling.pipeline import Lengths


class Row(NamedTuple):
    """How a scheduler is understood: who takes its steps, whether its sigmas are its own, what differs from it."""

    sampler: str
    sigmas: bool = False
    said: str = ""


ROWS: dict[str, Row] = {
    "DDIMScheduler": Row("ddim"),
    "DDPMScheduler": Row("ddpm"),
    "PNDMScheduler": Row("ddim", said="its steps are taken by DDIM"),
    "EulerDiscreteScheduler": Row("euler", sigmas=True),
    "DPMSolverMultistepScheduler": Row("dpmpp_2m", sigmas=True),
    "UniPCMultistepScheduler": Row("dpmpp_2m", sigmas=True, said="its steps are taken by DPM-Solver++(2M)"),
    "FlowMatchEulerDiscreteScheduler": Row("euler", sigmas=True),
    "FlowMatchHeunDiscreteScheduler": Row("heun", sigmas=True),
}
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Those of flows; Heun's has a static shift only."""
LEFT_OUT: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("stochastic_sampling", (None, False), "its fresh noise is left out"),
    ("thresholding", (None, False), "left out; sample.limit=threshold has it"),
    ("algorithm_type", (None, "dpmsolver++", "deis"), "dpmsolver++ is used"),
    ("solver_type", (None, "midpoint", "logrho", "bh1", "bh2"), "midpoint is used"),
    ("solver_order", (None, 1, 2), "order 2 is used"),
    ("euler_at_final", (None, False), "left out"),
    (
        "variance_type",
        (None, "fixed_small", "fixed_small_log"),
        "left out; sample.variance=large has fixed_large",
    ),
)
"""Keys of a config, the values that are honoured, and what happens to any other."""
REFUSED: dict[str, tuple[Any, ...]] = {
    "invert_sigmas": (None, False),
    "timestep_type": (None, "discrete"),
    "time_shift_type": (None, "exponential"),
}
"""Keys whose other values would make another path, and the values that are understood."""
OF_SAMPLING: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": (None, "leading"),
    **dict.fromkeys(("shift", "flow_shift"), (None, 1)),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), (None, False)),
    **dict.fromkeys(("use_dynamic_shifting", "stochastic_sampling", "thresholding"), (None, False)),
    "shift_terminal": (None, False),
    "algorithm_type": (None, "dpmsolver++"),
    "final_sigmas_type": (None, "zero"),
}
"""Keys that say how steps are taken and not what the levels are, and the values that say nothing."""
SPACINGS = ("leading", "trailing", "linspace")
RESHAPED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting", "shift_terminal")


REFUSALS = (
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RuntimeError,
    ImportError,
    AssertionError,
)
"""What diffusers may raise for a config that it does not understand."""


@dataclass(frozen=True)
class Scheduler:
    """scheduler_config.json of a prior whose levels are those of `table`, of a flow if it is None.

    `tokens` is how many patches the network sees at its native size, for dynamic shifts. `even`: the folder's pipeline
    asks for sigmas 1 .. 1/S before they are shifted. `law` is a dynamic shift's own mu (tokens, steps), which is then
    no property of the path: `time_shift` is 1. `path` are a flow's levels, `start` the deviation of its noise,
    `lengths` what guidance keeps.
    """

    config: Table
    table: DiscreteVP | None
    tokens: int = 0
    even: bool = False
    law: Callable[[int, int], float] | None = None
    path: Schedule = rectified_flow
    start: float = 1.0
    lengths: Lengths | None = None

    @property
    def name(self) -> str:
        """The class that the config names."""
        return self.config.text("_class_name", "DDIMScheduler" if self.table is not None else FLOWS[0])

    @property
    def row(self) -> Row:
        """How that class is understood."""
        first = "euler" if self.table is None else "ddim"
        takes = f"{'Euler' if self.table is None else 'DDIM'} takes the steps"
        if (self.table is None) != (self.name in FLOWS or bool(self._get("use_flow_sigmas"))):
            return Row(first, said=f"it does not fit the prior's path; {takes}")
        found = ROWS.get(self.name, Row(first, said=f"not one of ours; {takes}"))
        return found._replace(sampler="euler") if found.sigmas and self._get("solver_order") == 1 else found

    @property
    def sampler(self) -> str:
        """The sampler of the folder's own pipeline."""
        return self.row.sampler

    @property
    def trained(self) -> int:
        """num_train_timesteps: the label at t = 1 of a flow."""
        return self.config.whole("num_train_timesteps", 1000, high=100_000)

    @property
    def time_shift(self) -> float:
        """The resolution shift of a flow's times: static, dynamic at the native size, or flow_shift; 1 for a table."""
        if self.table is not None:
            return 1.0
        if self._get("use_dynamic_shifting") and self.name != FLOWS[1]:
            return math.exp(self.mu) if self.law is None else 1.0
        return self.config.real("flow_shift" if self._get("use_flow_sigmas") else "shift", 1.0, above=0)

    @property
    def mu(self) -> float:
        """The exponent of a dynamic shift: linear in the number of tokens, as in diffusers' pipelines."""
        low, high = self.config.whole("base_image_seq_len", 256), self.config.whole("max_image_seq_len", 4096)
        own = 1.15 if self.even or self.name == FLOWS[0] else 1.16
        base, most = self.config.real("base_shift", 0.5), self.config.real("max_shift", own)
        if low == high:
            raise self.config.refuse("max_image_seq_len", f"another number than base_image_seq_len, {low}")
        return base + (most - base) * (self.tokens - low) / (high - low)

    def notes(self, steps: int) -> tuple[str, ...]:
        """What a run of `steps` does otherwise than diffusers' pipeline of the folder, one sentence each."""
        found = [self.row.said] if self.row.said else []
        found += [f"{key}={self._get(key)}: {words}" for key, known, words in LEFT_OUT if self._get(key) not in known]
        spacing = self._get("timestep_spacing")
        if self.sampler == "ddim" and (spacing == "linspace" or (spacing == "trailing" and self.trained % steps)):
            found.append(f"timestep_spacing={spacing}: a step ends where the next one asks, diffusers' DDIM beside it")
        if self._get("final_sigmas_type") == "sigma_min" and self.sampler == "dpmpp_2m" and steps < 15:
            found.append("lower_order_final: the last step is of order 2")
        return tuple(f"{self.name}: {words}" for words in found)

    def for_sampling(self) -> tuple[str, ...]:
        """What the config says of steps alone, `key=value`."""
        return tuple(f"{key}={self._get(key)}" for key, plain in OF_SAMPLING.items() if self._get(key) not in plain)

    def times(
        self, steps: int, *, sampler: str, law: str = "auto", shift: float | None = None, offset: int | None = None
    ) -> Grid:
        """The stops of `steps` steps. With law "auto" those of the folder's own pipeline where `sampler` is its own (or
        another of order 1), else what suits the sampler; other laws and arguments as `grid.grid_of`.

        ValueError for what does not fit, PriorError for a config whose times mean something else.
        """
        own = sampler == self.sampler or {sampler, self.sampler} <= {"euler", "ddim"}
        if law == "auto" and own and self.row.sigmas:
            return self._theirs(steps, shift=shift, offset=offset)
        if law == "auto" and self.table is not None and sampler not in SECOND:
            law = self.config.text("timestep_spacing", "leading")
            if law not in SPACINGS:
                raise self.config.refuse("timestep_spacing", " or ".join(SPACINGS))
        own_shift = self.time_shift if shift is None else shift
        schedule = self.path if self.table is None else self.table
        offset = 1 if offset is None else offset
        grid = grid_of(schedule, steps, sampler=sampler, law=law, shift=own_shift, offset=offset, n=self.trained)
        return replace(grid, start=grid.start * self.start)

    def _get(self, key: str) -> Any:
        return self.config.content.get(key)

    def _theirs(self, steps: int, *, shift: float | None, offset: int | None) -> Grid:
        for key, known in REFUSED.items():
            if self._get(key) not in known:
                raise self.config.refuse(key, " or ".join(str(value) for value in known if value is not None))
        plain = self.name == FLOWS[1] or not (self.even or any(self._get(key) for key in RESHAPED))
        if self.name in FLOWS and (shift is not None or plain):
            own = self.time_shift if shift is None else shift
            return Grid(flow_match_spacing(steps, shift=own, n=self.trained), start=self.start)
        found = self._asked(steps, {"steps_offset": 1 if offset is None else offset} | _shifted(shift))
        labels = found.timesteps.double()
        sigmas = found.sigmas.double()[: len(labels) + 1]  # log_linear has one more, which no step reaches
        exploding = self.table is not None and "Euler" in self.name
        falls = bool((sigmas[:-1].diff() < 0).all()) and sigmas[-1] <= sigmas[-2]
        if not falls or not bool((sigmas.isfinite() & (sigmas >= 0)).all()):
            raise PriorError(f"{self.config.file}: its noise levels of {steps} steps do not fall: {sigmas.tolist()}")
        if self.table is None and sigmas[0] > 1:
            raise PriorError(
                f"{self.config.file}: its noise levels of {steps} steps are none of a flow: {sigmas.tolist()}"
            )
        return self._between(sigmas, labels, float(found.init_noise_sigma) if exploding else None)

    def _asked(self, steps: int, changes: dict[str, Any]) -> Any:
        """diffusers' scheduler of the config, after set_timesteps. PriorError with its words when it refuses."""
        import diffusers

        try:
            with quiet():
                scheduler = getattr(diffusers, self.name).from_config({**self.config.content, **changes})
            scheduler.set_timesteps(steps, **self._given(steps))
        except REFUSALS as error:
            raise PriorError(f"{self.config.file}: {error}") from None
        return scheduler

    def _given(self, steps: int) -> dict[str, Any]:
        """What the folder's pipeline passes to set_timesteps."""
        given: dict[str, Any] = {"sigmas": torch.linspace(1, 1 / steps, steps).tolist()} if self.even else {}
        if self._get("use_dynamic_shifting"):
            given["mu"] = self.mu if self.law is None else self.law(self.tokens, steps)
        return given

    def _between(self, sigmas: Tensor, labels: Tensor, initial: float | None) -> Grid:
        """The grid of diffusers' sigmas (S + 1,), those of a table being sigma / alpha, and labels (S,).

        `initial` is init_noise_sigma of a scheduler whose x is x0 + ratio eps: its run starts from that much noise, and
        what it ends with is not scaled back to the table's x.
        """
        end = labels.new_zeros(1)
        if self.table is None:
            times = torch.where(sigmas > 0, sigmas, 0)
            if torch.allclose(labels / self.trained, times[:-1], rtol=0, atol=1e-6):
                return Grid(times.float(), start=self.start)
            return Grid(times.float(), torch.cat([labels / self.trained, end]), Level(1 - times, times))
        norm = torch.hypot(torch.ones_like(sigmas), sigmas)
        times = self.table.time_at(sigmas / (1 + sigmas)).float()
        heard = torch.cat([(labels + 1) / len(self.table), end])
        whole = bool((labels == labels.round()).all())
        if initial is None:
            return Grid(times, heard, Level(1 / norm, sigmas / norm), whole=whole)
        last = torch.cat([norm[:-1], norm.new_ones(1)])
        if times[-1] == times[-2]:  # the last step only leaves the table's x behind
            times[-1] /= 2
        return Grid(times, heard, Level(1 / last, sigmas / last), start=initial / float(norm[0]), whole=whole)


def _shifted(shift: float | None) -> dict[str, Any]:
    return {} if shift is None else {"shift": shift, "flow_shift": shift, "use_dynamic_shifting": False}


def scheduler_of(config: Table, table: DiscreteVP | None) -> Scheduler | None:
    """The scheduler of a folder in the shape of SD; None for a flow whose config is that of a noise model, which a
    folder of InstaFlow may have from the model it was trained from."""
    return Scheduler(config, table) if table is not None or config.content.get("_class_name") in FLOWS else None
