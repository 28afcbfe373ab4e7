"""Text to 3D from Python, by the code behind `task=lift`, without a run folder:

from threestudio_rf import lift

run = lift("a red mushroom", steps=200)
for state in run:                      # one per step; leave the loop and come back whenever you like
    print(state.step, state.metrics["loss"])
run.figures["volume_iou"]              # for prompts whose truth is known
run.save("mushroom")                   # mesh, video and pictures
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import torch

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.check.reads import check_named
from threestudio_rf.app.build.scene import pick_device
from threestudio_rf.app.build.views import turntable
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.pictures import Pictures, pictures, tag
from threestudio_rf.app.report.score import evaluate_scene, tellable, volume_of
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.layers import settings as settings_from
from threestudio_rf.app.tasks.lift import prepare, run_lift, step_threads
from threestudio_rf.app.tasks.output.asset import write_asset
from threestudio_rf.app.tasks.output.look import mesh_of, renderings, turn_fps
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.export.media import png, video
from threestudio_rf.export.mesh import Mesh
from threestudio_rf.scenes.base import Scene
from threestudio_rf.trainer.lift import LiftState


class Lifting:
    """A run of text to 3D in this process. Iterating takes its steps; what it has reached can be asked at any time."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.run = Run(config, Path(), device)
        self._made = prepare(self.run)
        if not self._made.row.posed:
            raise UserError(f"scene={config.scene.name}: expected an object, pictures are made by sample()")
        self.scene: Scene = self._made.scene
        with step_threads(config):
            self._states = run_lift(self._made)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._made.step

    def __iter__(self) -> Iterator[LiftState]:
        while True:
            with step_threads(self.run.config):
                state = next(self._states, None)
            if state is None:
                return
            self._made.step = state.step + 1
            yield state

    @property
    def result(self) -> Result:
        """The scene with its settings and what it has cost."""
        return self._made

    def pictures(self, views: int = 8) -> Pictures:
        """Views all round, (views, 3, H, W) in [0, 1], H = W = `camera.eval_size`."""
        camera = turntable(self.run.config.camera, views)
        return pictures(torch.cat([seen.rgb for seen in renderings(self.scene, camera, self.run.device)]))

    def mesh(self) -> Mesh:
        """Triangles with colours; EmptyGeometryError where there is no surface yet."""
        return mesh_of(self.run, self.scene)

    def video(self, file: str | Path, *, views: int = 0) -> Path:
        """A turntable as mp4, `camera.test_views` pictures unless `views` are given; its path, or that of its first
        picture where no ffmpeg is."""
        frames = self.pictures(views or self.run.config.camera.test_views)
        return video(Path(file), frames, turn_fps(len(frames)))[0]

    @property
    def figures(self) -> dict[str, float | None]:
        """Figures of how right the object is, those of metrics.json without its cost. UserError for a prompt whose
        truth is not known."""
        config = self.run.config
        if not tellable(config, config.prompt):
            raise UserError(f"{config.prompt!r} with prior {config.prior.name}: its truth is not known")
        volume = volume_of(self.scene, self.run.device)
        found = evaluate_scene(self.run, self.scene, volume, None if volume is None else self.mesh(), {})
        return {name: value for name, value in found.items() if "seconds" not in name and "calls" not in name}

    def save(self, folder: str | Path) -> Path:
        """Write model.glb, .obj and .ply, turntable.mp4 and front.png into `folder` and return it."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        self.video(place / "turntable.mp4")
        png(place / "front.png", self.pictures(1)[0])
        write_asset(self.run, self.scene, self.mesh(), place)
        return place

    def _repr_html_(self) -> str:
        """The object from eight sides, for notebooks."""
        config = self.run.config
        return f"<p>{escape(config.prompt)}, step {self.step} of {config.trainer.steps}</p>" + "".join(
            tag(picture) for picture in self.pictures().pil()
        )


def lift(
    prompt: str,
    *,
    experiment: str = "tiny",
    prior: str | None = None,
    loss: str | None = None,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: dict[str, Any] | None = None,
) -> Lifting:
    """An object for `prompt`, not yet begun; iterate over it to take its steps.

    `experiment`, `prior` and `loss` are files of configs/ by name, None keeps the experiment's own; `steps` is
    trainer.steps. `settings` are any others by dotted key, {"camera.sizes": [32]}. Raises UserError for what the
    command line would refuse, PriorError for weights that cannot be used.

    >>> run = lift("a red ball", steps=2, settings={"camera.sizes": [16]})
    >>> [state.step for state in run]
    [0, 1]
    """
    chosen = {"experiment": experiment, "prior": prior, "loss": loss}
    changes = {"prompt": prompt, "seed": seed, "device": device} | ({} if steps is None else {"trainer.steps": steps})
    config = settings_from({key: name for key, name in chosen.items() if name}, changes | (settings or {}))
    check(config)
    check_named(config, [(key, (key,)) for key in settings or ()])
    return Lifting(config, pick_device(device))
