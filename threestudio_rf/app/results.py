"""Editing, figures and files from Python, by the code behind `task=edit`, `task=evaluate` and `task=export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.app.api import Picture, check_names, load_prior, picture_of
from threestudio_rf.app.build.check.config import check_group
from threestudio_rf.app.build.check.edit import check_edit
from threestudio_rf.app.build.picture import check_mask
from threestudio_rf.app.build.prior import bank_cache
from threestudio_rf.app.build.scene import pick_device
from threestudio_rf.app.errors import user_path
from threestudio_rf.app.objects import Lifting
from threestudio_rf.app.pictures import Pictures, pictures
from threestudio_rf.app.report.score import KEYS_2D, SPENT, known
from threestudio_rf.app.run.run import Run, open_checkpoint
from threestudio_rf.app.settings.compose import from_text
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.app.settings.layers import settings as settings_from
from threestudio_rf.app.tasks.desk import Desk
from threestudio_rf.app.tasks.edit import delivered, edited
from threestudio_rf.app.tasks.output.asset import write_asset
from threestudio_rf.app.tasks.output.finish import shown
from threestudio_rf.app.tasks.output.look import mesh_of
from threestudio_rf.app.tasks.output.result import Result, stored
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.facts import DEFAULT
from threestudio_rf.tiny.world.figures.score2d import score_pictures

FILES = ("image", "source", "prompts", "mask", "video", "fps", "lpips")


def edit(
    image: Picture,
    prompt: str | Sequence[str],
    *,
    source: str = "",
    prior: str | Prior = DEFAULT,
    mask: Picture | None = None,
    seed: int = 0,
    device: str = "auto",
    **settings: Any,
) -> Pictures:
    """`image` as `prompt` says, (N, 3, H, W) in [0, 1], one for each prompt, at the picture's own size.

    `image` is a file or a tensor (3, H, W) or (1, 3, H, W) in [0, 1], `source` says what it shows, `mask` has the same
    height and width, and its black part is kept. `settings` are those of `task=edit` by name: method (flowedit by
    default), steps, cfg, keep, t_start and the others; those that are not given are the ones chosen for the embedded
    prior, or the published ones. Raises UserError for an unknown or unfit setting or a broken file, PriorError for
    weights that cannot be used, ValueError for tensors of another shape.

    >>> edit(torch.full((3, 80, 64), 0.5), "a blue ball", source="a red ball", prior="tiny_sd", steps=2).shape
    torch.Size([1, 3, 80, 64])
    """
    check_names(settings, [field.name for field in fields(EditConfig) if field.name not in FILES])
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    name = prior if isinstance(prior, str) else prior.name
    changes: dict[str, Any] = {"edit.image": "-", "edit.source": source, "edit.prompts": prompts, "seed": seed}
    config = settings_from({"task": "edit", "prior": name}, changes | {f"edit.{k}": v for k, v in settings.items()})
    check_group(config, "edit")
    check_edit(config)
    where = pick_device(device)
    desk = Desk(Run(config, Path(), where), load_prior(prior, device=str(where)) if isinstance(prior, str) else prior)
    given, hidden = picture_of(image, "image"), None if mask is None else picture_of(mask, "mask")
    if hidden is not None:
        check_mask(hidden, given, "edit")
    taken = desk.take("picture", given, hidden)
    return pictures(delivered(taken, edited(desk, taken)[0], config.edit.keep))


def evaluate(what: Tensor | Lifting | str | Path, prompt: str = "") -> dict[str, float | None]:
    """Figures of how right something is, those of metrics.json without its cost.

    `what` are pictures (N, 3, H, W) in [0, 1] of `prompt`, an object of `lift`, or the folder of a run. UserError where
    the truth is not known: it is for prompts of the tiny world, one shape in one colour.

    >>> sorted(evaluate(torch.full((1, 3, 64, 64), 0.5), "a red ball"))[:2]
    ['colour_error', 'diversity']
    """
    if isinstance(what, Lifting):
        return what.figures
    if isinstance(what, Tensor):
        if what.ndim != 4 or what.shape[1] != 3:
            raise ValueError(f"got {tuple(what.shape)}, expected pictures (N, 3, H, W)")
        subject, judge = known(prompt)
        plain = what.as_subclass(Tensor).detach().cpu().float()
        found = score_pictures(plain, plain, subject=subject, judge=judge, cache=bank_cache(""))
        return {key: found.get(key) for key in KEYS_2D if key not in (*SPENT, "diversity_latent")}
    result = _opened(what)
    return {key: value for key, value in shown(result).figures(result).items() if key not in SPENT}


def export(what: Lifting | str | Path, folder: str | Path, **settings: Any) -> list[Path]:
    """The mesh of an object of `lift`, or of a run's folder, as files in `folder`; their paths.

    `settings` are those of `task=export` by name: resolution, formats (glb, obj, ply, stl), texture, faces, smooth, up,
    scale, material, threshold. Raises UserError for an unknown or unfit setting, EmptyGeometryError where there is no
    surface, OSError when the disk is full.
    """
    result = what.result if isinstance(what, Lifting) else _opened(what)
    chosen = result.run.config.export
    check_names(settings, [field.name for field in fields(chosen)])
    before = {name: getattr(chosen, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(chosen, name, value)
        check_group(result.run.config, "export")
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if result.row.write is not None:
            return result.row.write(result.scene, place)
        return write_asset(result.run, result.scene, mesh_of(result.run, result.scene), place)
    finally:
        for name, value in before.items():
            setattr(chosen, name, value)


def _opened(folder: str | Path) -> Result:
    """The scene of a run's folder, or of a checkpoint."""
    loaded = open_checkpoint(user_path(folder, "folder"))
    config = from_text(loaded.state["config"], str(loaded.path))
    with torch.no_grad():
        return stored(Run(config, Path(), pick_device("auto"), loaded))
