"""A scene at a step of its run, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from threestudio_rf.app.build.scene import SCENES, SceneRow, build_any, build_prior
from threestudio_rf.app.errors import RunError
from threestudio_rf.app.run.run import Run
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.base import Scene
from threestudio_rf.trainer.checkpoint import fitting


@dataclass
class Result:
    """`scene` is built and `prior` loaded when they are first asked for."""

    run: Run
    step: int = 0
    figures: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "network_calls": 0.0})

    @cached_property
    def prior(self) -> Prior:
        """The frozen network."""
        return build_prior(self.run.config.prior, self.run.device)

    @cached_property
    def scene(self) -> Scene:
        """A fresh scene, or that of the run's checkpoint."""
        scene = build_any(self.run.config, lambda: self.prior, self.run.device)
        if self.run.resumed is not None:
            with fitting(self.run.resumed.path, "scene"):
                scene.load_state_dict(self.run.resumed.state["scene"])
        return scene

    @property
    def row(self) -> SceneRow:
        """What the application knows of its kind of scene."""
        return SCENES[self.run.config.scene.name]


def stored(run: Run) -> Result:
    """The result of the checkpoint that is resumed."""
    if run.resumed is None:
        raise RunError("a stored scene needs resume=")
    return Result(run, run.resumed.state["step"], dict(run.resumed.state["figures"]))
