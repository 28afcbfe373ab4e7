"""A scene at a step of its run, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from threestudio_rf.app.build.scene import SCENES, SceneRow, build_any, build_prior
from threestudio_rf.app.build.start import mesh_file
from threestudio_rf.app.console import peak_memory_mb
from threestudio_rf.app.errors import RunError, UserError
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.compose import from_text
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.base import Scene, Surface
from threestudio_rf.trainer.checkpoint import fitting


@dataclass
class Result:
    """Scene and prior of a run at one step; each is made when it is first asked for."""

    run: Run
    step: int = 0
    figures: dict[str, float] = field(default_factory=lambda: {"seconds": 0.0, "network_calls": 0.0})

    @cached_property
    def prior(self) -> Prior:
        """The frozen network."""
        return build_prior(self.run.config.prior, self.run.device)

    @cached_property
    def scene(self) -> Scene:
        """A fresh scene, or that of the run's checkpoint, or what begins with another scene or a file."""
        run, row = self.run, self.row
        scene = build_any(run.config, lambda: self.prior, run.device)
        if run.resumed is None:
            if run.config.weights and row.start is not None:
                row.start(scene, mesh_file(run.config), run.config)
            return scene
        stored = from_text(run.resumed.state["config"], str(run.resumed.path))
        if row.start is None or SCENES.get(stored.scene.name) is row:
            with fitting(run.resumed.path, "scene"):
                scene.load_state_dict(run.resumed.state["scene"])
            return scene
        origin = build_any(stored, lambda: self.prior, run.device)
        with fitting(run.resumed.path, "scene"):
            origin.load_state_dict(run.resumed.state["scene"])
        if not isinstance(origin, Surface):
            raise UserError(f"init={run.config.weights}: scene={stored.scene.name} has no surface to begin with")
        row.start(scene, origin, run.config)
        return scene

    def spent(self) -> dict[str, float]:
        """What the run has cost so far; its memory is the largest of all processes that took steps or looked."""
        before = self.figures.get("peak_memory_mb", 0.0)
        return self.figures | {"peak_memory_mb": max(before, peak_memory_mb())}

    @property
    def row(self) -> SceneRow:
        """What the application knows of its kind of scene."""
        return SCENES[self.run.config.scene.name]


def stored(run: Run) -> Result:
    """The result of the checkpoint that is resumed."""
    if run.resumed is None:
        raise RunError("a stored scene needs resume=")
    return Result(run, run.resumed.state["step"], dict(run.resumed.state["figures"]))
