"""All methods as one table of settings, and what is asked of them: the noise of a picture, the picture of a noise, an
edit. Everything happens on the straight path of a `Path`; the last state's x is the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.level import Schedule
from threestudio_rf.core.random import Draws, normal
from threestudio_rf.core.sample import State, keep
from threestudio_rf.core.times import falling_times, flow_match_spacing
from threestudio_rf.edit.delta import Delta, change
from threestudio_rf.edit.direct import Direct, ascend, descend
from threestudio_rf.edit.invert import Ode, down, travel, up
from threestudio_rf.edit.irfds import IRFDS, explain
from threestudio_rf.edit.path import TARGET, Path
from threestudio_rf.edit.steer import Steered, chef

Settings = Ode | Direct | IRFDS | Steered | Delta

METHODS: dict[str, Settings] = {
    "euler": Ode("euler", steps=28),
    "rf_solver": Ode("midpoint", steps=15),
    "fireflow": Ode("fireflow", steps=8),
    "rf_inversion": Ode("euler", steps=28, gamma=0.5, eta=0.9),
    "direct": Direct(),
    "irfds": IRFDS(),
    "irfds_sd3": IRFDS(
        init="image",
        steps=1400,
        rate=2e-3,
        t_min=0.008,
        t_max=1.0,
        t_shift=3.0,
        t_count=15,
        t_start=1.0,
        down_steps=15,
        shift=3.0,
        scale=2.0,
    ),
    "irfds_fast": IRFDS(init="inverted", init_steps=8, steps=10, rate=2e-3, accumulate=1),
    "flowedit": Delta(steps=33, t_start=0.853),
    "flowalign": Delta(steps=33, scale=7.5, scale_source=1.0, base="source", zeta=0.01),
    "dds": Delta(steps=50, law="uniform", drift="none", rate=5.0, scale=7.5, scale_source=7.5),
    "pds": Delta(
        steps=200,
        t_start=0.929,
        t_min=0.121,
        law="uniform",
        drift="none",
        weight="posterior",
        rate=0.1,
        scale=100.0,
        scale_source=100.0,
    ),
    "drfs": Delta(steps=50, drift="parabola", scale=16.5, scale_source=6.0),
    "flowchef": Steered(steps=30, k=0.5, stop=0.5),
    "sdedit": Steered(steps=28, t_start=0.7),
}
"""Name -> settings of its paper, of the reference for irfds (InstaFlow) and irfds_sd3; irfds_fast is our own. DDS,
PDS and DRFS state no step length that carries over, so their rates are ours."""

INVERTING = tuple(name for name, settings in METHODS.items() if isinstance(settings, Ode | Direct | IRFDS))
"""The methods that find a noise for a picture."""


def settled(settings: Settings, schedule: Schedule, shift: float) -> Settings:
    """The settings with the prior's own `shift` where they leave it open; ValueError as `times_of`."""
    own = shift if schedule.table is None else 1.0
    chosen = settings if settings.shift is not None else replace(settings, shift=own)
    times_of(schedule, chosen)
    return chosen


def times_of(schedule: Schedule, settings: Settings) -> Tensor:
    """(S + 1,) falling times of the way down of settled settings; ValueError for a level the prior does not have.

    With `of` N they are the last of N that begin at the noisiest level: on a path without a table those of diffusers'
    flow-matching pipelines (`flow_match_spacing`), as the authors of FlowEdit have them, else N even entries.
    """
    if isinstance(settings, Delta) and settings.of is not None:
        whole = falling_times(schedule, settings.of, shift=settings.shift or 1.0)
        if schedule.table is None:
            whole = schedule.time_at(flow_match_spacing(settings.of, shift=settings.shift or 1.0))
        return whole[-settings.steps - 1 :]
    steps = settings.down_steps if isinstance(settings, IRFDS) else settings.steps
    return falling_times(schedule, steps, t_start=settings.t_start, shift=settings.shift or 1.0)


def states_of(settings: Settings) -> int:
    """How many states an edit has."""
    if isinstance(settings, IRFDS):
        return 1 + settings.steps + settings.down_steps
    return settings.steps * (2 if isinstance(settings, Ode | Direct) else 1) + isinstance(settings, Steered)


def find_noise(path: Path, x0: Tensor, settings: Settings, *, generator: Draws) -> Iterator[State]:
    """The search for the noise e of x0 (B, C, h, w), which is the last state's x: x_t = (1 - t') x0 + t' e is then the
    start of the way down. SDEdit and FlowChef draw it. ValueError for a method of differences, which needs none."""
    times = times_of(path.schedule, settings)
    if isinstance(settings, IRFDS):
        return explain(path, x0, settings, generator=generator)
    if isinstance(settings, Ode | Direct):
        if isinstance(settings, Direct):
            climb = ascend(path, x0, times, settings)
        else:
            climb = up(path, x0, times, settings, generator=generator)
        return (state._replace(x=split("x0", x0, state.x, path.level(state.t))[1]) for state in climb)
    if isinstance(settings, Steered):
        eps = normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)
        return iter([State(0, times[:1].to(x0.device).expand(len(x0)), eps, x0)])
    raise ValueError(f"got {type(settings).__name__}, expected a method that goes through noise")


def gathered(trail: list[State], state: State, settings: Settings) -> None:
    """Put a state of `find_noise` into `trail`: all for `Direct`, which goes back the way it came, else the last alone,
    whose x is the noise."""
    if not isinstance(settings, Direct):
        trail.clear()
    trail.append(state)


def resample(
    path: Path,
    x0: Tensor,
    eps: Tensor,
    settings: Settings,
    *,
    role: str,
    mask: Tensor | None = None,
    trail: Sequence[State] = (),
    generator: Draws | None = None,
) -> Iterator[State]:
    """The way down from x0 (B, C, h, w) under its noise e, with the prompt of `role`. `Direct` needs the `trail`, all
    states of `find_noise`; what draws noise on the way down (`Ode.sde`) needs the generator.

    `mask` (B or 1, 1, h, w) is 1 where the picture may change; elsewhere x0 under e is put back after every step, and
    x0 itself at the end; FlowChef has it in its loss instead. ValueError as `find_noise`.
    """
    times = times_of(path.schedule, settings)
    x = noise(x0, eps, path.level(times[:1].to(x0.device).expand(len(x0))))
    after = None if mask is None else keep(x0, eps, mask, schedule=path.level)
    if isinstance(settings, Ode):
        return down(path, x, x0, times, settings, role=role, after=after, generator=generator)
    if isinstance(settings, Direct):
        passed = [x0, *(noise(x0.double(), state.x, path.level(state.t)) for state in trail)]
        return descend(path, passed, times, settings, role=role, after=after)
    if isinstance(settings, IRFDS):
        return travel(path.velocity(role, settings.scale), x, times, after=after)
    if isinstance(settings, Steered):
        return chef(path, x, x0, times, settings, role=role, mask=mask, after=None if settings.k else after)
    raise ValueError(f"got {type(settings).__name__}, expected a method that goes through noise")


def edit(
    path: Path,
    x0: Tensor,
    settings: Settings,
    *,
    generator: Draws,
    role: str = TARGET,
    mask: Tensor | None = None,
) -> Iterator[State]:
    """The states of an edit of x0 (B, C, h, w), which is the last state's x; `mask` as in `resample`.

    With settings.faithful() and role "source" it is a reconstruction.
    """
    if isinstance(settings, Delta):
        times = times_of(path.schedule, settings)
        yield from change(path, x0, times, settings, generator=generator, role=role, mask=mask)
        return
    trail: list[State] = []
    for state in find_noise(path, x0, settings, generator=generator):
        gathered(trail, state, settings)
        yield state
    eps = trail[-1].x
    yield from resample(path, x0, eps, settings, role=role, mask=mask, trail=trail, generator=generator)
