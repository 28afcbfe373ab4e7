"""A lift of pictures: snapshots of the pictures, their final files and their figures."""

from __future__ import annotations

import dataclasses
import json

import torch
from torch import Tensor

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import FAILED, GOOD, UserError
from threestudio_rf.app.report.curves import COLUMNS, snapshots, strip
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.core.files import write_files
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.scenes.camera import orbit

BATCH = 8


@torch.no_grad()
def values_of(result: Result) -> Tensor:
    """All particles (N, C, H, W) as the scene holds them: colours or latents."""
    anywhere = orbit(1, height=8, width=8).to(result.run.device)
    return result.scene.render(anywhere).rgb


@torch.no_grad()
def decoded(result: Result) -> Tensor:
    """All particles as pictures (N, 3, H, W) in [0, 1], float32 on the CPU."""
    shown = values_of(result).float()
    if result.row.latent(result.run.config):
        shown = torch.cat([result.prior.decode(part) for part in shown.split(BATCH)])
    return shown.cpu().float().clamp(0, 1)


def taken_at(run: Run, step: int) -> int:
    """The step of the optimiser that `step` of the loop belongs to."""
    return step // run.config.optim.accumulate


def snapshot(result: Result) -> Tensor:
    """`<step>_<particle>.png` and, once, `config.json`, named as the reference's 2D scripts name them, which count the
    optimiser's steps; the pictures (N, 3, H, W). A full disk costs pictures, not the run."""
    run, images, number = result.run, decoded(result), taken_at(result.run, result.step)
    try:
        if not (run.folder / "config.json").exists():
            text = json.dumps(dataclasses.asdict(run.config), indent=4, ensure_ascii=False) + "\n"
            write_files({run.folder / "config.json": text.encode("utf-8", "surrogateescape")})
        for i, image in enumerate(images):
            png(run.folder / f"{number:05d}_{i:02d}.png", image)
    except OSError as error:
        LOG.warning("no pictures of step %d: %s", result.step, error.strerror or error)
    return images


def finish(result: Result, images: Tensor) -> int:
    """`save/it<step>-sheet.png`, all particles side by side, and `save/it<step>-strip.png`, the first of them along
    time. Exit code 1 when they cannot be written."""
    run, step, cell = result.run, result.step, max(64, min(256, images.shape[-1]))
    rows = [("", list(images[i : i + COLUMNS])) for i in range(0, len(images), COLUMNS)]
    try:
        LOG.info("wrote %s", png(run.save(f"it{step}-sheet.png"), contact_sheet(rows, cell=cell)))
        taken = {at: paths for at, paths in snapshots(run.folder).items() if at <= taken_at(run, step)}
        if len(taken) > 1:
            LOG.info("wrote %s", png(run.save(f"it{step}-strip.png"), strip(taken, min(cell, 128))))
    except (OSError, UserError) as error:
        LOG.error("the final pictures could not be written: %s", error)
        return FAILED
    return GOOD
