"""Views and times of small lifts, for tests that build the loop's settings by hand."""

from __future__ import annotations

from threestudio_rf.core.times import BUMP
from threestudio_rf.trainer.ramp import Constant
from threestudio_rf.trainer.settings import Times, Views

LOOKS = Views(
    sizes=[8],
    milestones=[],
    counts=[3],
    elevation=(-10.0, 70.0),
    azimuth=(-180.0, 180.0),
    distance=(1.6, 2.0),
    fovy=(40.0, 52.0),
    sphere=0.5,
    stratified=True,
    front=45.0,
    back=45.0,
    overhead=60.0,
    wording="four",
    stray=(0.0, 0.0, 0.0),
)
TIMES = Times(t_min=Constant(0.02), t_max=Constant(0.98), law="uniform", shift=1.0, width=0.0, bump=BUMP, draws=1)
LIMITS = {"skip_limit": 20, "empty_limit": 100}
