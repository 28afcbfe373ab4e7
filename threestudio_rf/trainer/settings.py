"""What a lift is told: which cameras, which times, which method, which factors and rates over steps.

What the application's settings state has no second default here; what is left out is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from threestudio_rf.core.level import Schedule, rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.core.times import Bump, Law, draw
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.views import Curves, octant_index, view_index
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.trainer.ramp import Value

Wording = Literal["four", "octants", "camera"]
WORDINGS: tuple[Wording, ...] = get_args(Wording)


def progress(step: int, steps: int) -> float:
    """The share of a run that is over at a step: 0 at the first, 1 at the last."""
    return step / max(1, steps - 1)


@dataclass(frozen=True)
class Views:
    """Which cameras a step looks through: ranges in degrees and units, picture size and number of views by milestone,
    from where a view word holds, and how the prior is asked for a view: by SD's four words, by octant and height, or by
    by the camera itself. `stray` as in `random_views`; view words are those of the cameras as they were before."""

    sizes: Sequence[int]
    milestones: Sequence[int]
    counts: Sequence[int]
    elevation: tuple[float, float]
    azimuth: tuple[float, float]
    distance: tuple[float, float]
    fovy: tuple[float, float]
    sphere: float
    stratified: bool
    front: float
    back: float
    overhead: float
    wording: Wording
    stray: tuple[float, float, float]

    def camera(self, step: int, seed: int) -> Camera:
        """The cameras of a step."""
        stage = sum(step >= milestone for milestone in self.milestones)
        size = self.sizes[min(stage, len(self.sizes) - 1)]
        return random_views(
            self.counts[min(stage, len(self.counts) - 1)],
            generator(seed, step, "camera"),
            elevation=self.elevation,
            azimuth=self.azimuth,
            distance=self.distance,
            fovy=self.fovy,
            sphere=self.sphere,
            stratified=self.stratified,
            stray=self.stray,
            height=size,
            width=size,
        )

    def index(self, camera: Camera) -> Tensor:
        """The name of each camera's view (B,), into VIEWS or OCTANT_WORDS."""
        if self.wording == "octants":
            return octant_index(camera.azimuth, camera.elevation)
        return view_index(camera.azimuth, camera.elevation, front=self.front, back=self.back, overhead=self.overhead)


@dataclass(frozen=True)
class Times:
    """How t is drawn: a window whose ends may move, a law with its numbers, and SD3's shift of the draw.

    `draws`: how many t and noises a rendering gets, whose gradients are averaged; each t lies in its own share of the
    law (stratified), so their mean varies less than that of independent ones. ValueError for less than one.
    """

    t_min: Value
    t_max: Value
    law: Law
    shift: float
    width: float
    bump: Bump
    draws: int

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws: got {self.draws}, expected at least 1")

    def draw(self, n: int, step: int, steps: int, seed: int, *, schedule: Schedule = rectified_flow) -> Tensor:
        """Times (n,) of a step, n a multiple of `draws`; `schedule` is the prior's, for the law that weighs levels."""
        return draw(
            n,
            generator(seed, step, "t"),
            t_min=self.t_min(step),
            t_max=self.t_max(step),
            law=self.law,
            shift=self.shift,
            progress=progress(step, steps),
            width=self.width,
            schedule=schedule,
            bump=self.bump,
            strata=self.draws,
        )


@dataclass(frozen=True)
class LiftSettings:
    """One lift. `lambdas` are the factors of "distill" and of the regularizers; a factor of 0 is not computed.
    `rates` are the learning rates of the optimiser's groups. `encode_size` resizes the rendering before the encoder
    (0: as rendered); with `latent` the rendering's rgb are the prior's latents already, and there is no encoder.
    `clip` is the largest norm of the gradient (0: none). `accumulate`: the optimiser steps at every k-th step, by the
    mean of the gradients since the last time; the learning rate is that of the step. `perp_neg` weighs Perp-Neg's
    negative view prompts (None: no Perp-Neg). ValueError for less than one step to accumulate."""

    steps: int
    method: Method
    rates: Mapping[str, Value]
    views: Views
    times: Times
    skip_limit: int
    empty_limit: int
    lambdas: Mapping[str, Value] = field(default_factory=dict)
    encode_size: int = 0
    latent: bool = False
    clip: float = 0.0
    accumulate: int = 1
    perp_neg: Curves | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate: got {self.accumulate}, expected at least 1")

    def factor(self, name: str, step: int) -> float:
        """The factor of a loss term at a step, 0 when it is not named."""
        return self.lambdas[name](step) if name in self.lambdas else 0.0
