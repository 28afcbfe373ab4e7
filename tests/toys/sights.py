"""What the settings of a command reach, task by task: objects of a lift, files of the other tasks, calls of the rim."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from portrait import portrait

from threestudio_rf.app.build.check.edit import name_of
from threestudio_rf.app.build.method import build_twin, embed_roles, lift_settings
from threestudio_rf.app.build.picture import read_mask, read_picture
from threestudio_rf.app.build.prior import build_prior
from threestudio_rf.app.build.sampling import plan
from threestudio_rf.app.build.start import mesh_file
from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.build.views import embed_views, turntable
from threestudio_rf.app.report import score
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.tasks import edit, grid, lift, sample, train_tiny
from threestudio_rf.app.tasks.output import look
from threestudio_rf.export.mesh import Mesh

CPU = torch.device("cpu")
TETRA = Mesh(torch.eye(4)[:, :3], torch.tensor([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]]), torch.eye(4)[:, 1:])
Sight = Callable[[Config, Path], dict[str, Any]]


calls: list[Any] = []
"""What the doubles were called with."""


def noted(name: str, answer: Any = None) -> Callable[..., Any]:
    """A function that notes its calls."""

    def note(*given: Any, **options: Any) -> Any:
        calls.append((name, given, options))
        return answer(*given, **options) if callable(answer) else answer

    return note


def lifted(config: Config, folder: Path) -> dict[str, Any]:
    """What reaches trainer, scene, prior and the pictures of a lift."""
    made = lift.Lift(Run(config, folder, CPU))
    words: list[list[str]] = []
    embed = made.prior.embed
    made.prior.embed = lambda prompts: words.append(prompts) or embed(prompts)  # type: ignore
    conditions, _ = embed_views(config, made.prior)
    embed_roles(config, made.prior, views=len(conditions) > 1)
    found: dict[str, Any] = {"words": words, "twin": build_twin(config, made.prior, conditions)}
    del made.prior.embed
    found |= {"prior": made.prior, "scene": made.scene, "settings": lift_settings(config)}
    groups = made.optimiser.param_groups
    found["optimiser"] = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    found["turntable"] = turntable(config.camera, config.camera.test_views)
    found["validation"] = turntable(config.camera, config.camera.validation_views)
    return portrait(found)


def files(work: Callable[[Run], Any], config: Config, folder: Path) -> dict[str, Any]:
    """The digests of the files that a command leaves."""
    shutil.rmtree(folder, ignore_errors=True)
    work(Run(config, folder, CPU))
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".json"
    }


def plotted(config: Config, folder: Path) -> dict[str, Any]:
    """What reaches the plan of task=sample."""
    drawn = config.sample
    image = read_picture(drawn.image, "sample.image") if drawn.image else None
    mask = read_mask(drawn.mask, "sample.mask") if drawn.mask else None
    prior, other = build_prior(config.prior, CPU), config.negative_prompt
    made = plan(prior, config.prompt, drawn, negative_prompt=other, device=CPU, image=image, mask=mask)
    return portrait(made)


def sampled(config: Config, folder: Path) -> dict[str, Any]:
    """The pictures of task=sample, and which of them were made at once."""
    calls.clear()
    found = files(sample.command, config, folder)
    return found | portrait([given[1] for name, given, _ in calls if name == "run"])


def edited(config: Config, folder: Path) -> dict[str, Any]:
    """The pictures of task=edit."""
    return files(edit.command, config, folder)


def steered(config: Config, folder: Path) -> dict[str, Any]:
    """The settings of an edit's method."""
    return portrait(method_of(name_of(config), config.prior.name, config.edit))


def exported(config: Config, folder: Path) -> dict[str, Any]:
    """The files of a mesh, and how it was asked for."""
    calls.clear()
    found = files(lambda run: look.export(lift.Lift(run)), config, folder)
    return found | portrait([(name, given[2:], options) for name, given, options in calls])


def turned(config: Config, folder: Path) -> dict[str, Any]:
    """The turntable's files."""
    return files(lambda run: look.test(lift.Lift(run)), config, folder)


def begun(config: Config, folder: Path) -> dict[str, Any]:
    """The file that a mesh begins with."""
    return portrait(mesh_file(config))


def planned(config: Config, folder: Path) -> dict[str, Any]:
    """The cells of a grid."""
    return portrait([grid.folder_of(config), grid.cells_of(config.grid, folder)])


def trained(config: Config, folder: Path) -> dict[str, Any]:
    """What reaches the factory of the embedded priors; `calls` of its doubles."""
    calls.clear()
    train_tiny.command(Run(config, folder, CPU))
    return portrait({"folder": train_tiny.folder_of(config), "calls": list(calls)})


def judged(config: Config, folder: Path) -> dict[str, Any]:
    """Whether a result is judged, and from where."""
    calls.clear()
    score.evaluate_scene(Run(config, folder, CPU), torch.nn.Module(), None, None, {})  # type: ignore[arg-type]
    return portrait({"auto": score.tellable(config, config.prompt), "calls": list(calls)})


def looped(config: Config, folder: Path) -> dict[str, Any]:
    """What a lift of twelve steps writes down, and when."""
    calls.clear()
    made = lift.Lift(Run(config, folder, CPU))
    lift.train(made, Stop())
    return portrait({"calls": list(calls)})
