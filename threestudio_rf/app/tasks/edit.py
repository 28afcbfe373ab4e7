"""task=edit: a picture becomes what the prompt says, at its own size."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from threestudio_rf.app.build.check.edit import prompts_of
from threestudio_rf.app.build.picture import hidden_part, spread
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.report.score import known, tellable
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks.blend import kept_edit
from threestudio_rf.app.tasks.desk import Desk, Figures, Given, follow, free, over_pictures, report
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import State
from threestudio_rf.export.media import contact_sheet, png, video
from threestudio_rf.tiny.world.judge import NONE
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS

SHOWN_ROWS, SHOWN_FRAMES = 16, 64
STRIP = 2**20
"""Pixels that are put together at once."""


def delivered(given: Given, edited: Tensor, keep: float) -> Tensor:
    """The edits (N, 3, H, W) at the picture's own size from those at the prior's (N, 3, h, w).

    With `keep` above 0 the picture stays where the edit changed little (`kept_edit`), else the edited part replaces it;
    what the prior did not see, and the black part of a mask, stay as they are. A large picture is put together strip by
    strip.
    """
    high, wide = given.image.shape[-2:]
    put = _put_back(given, edited, keep)
    if high * wide <= STRIP:
        return put(None)
    result = torch.empty(len(edited), *given.image.shape)
    each = max(1, STRIP // wide)
    for first in range(0, high, each):
        rows = slice(first, min(first + each, high))
        result[..., rows, :] = put(rows)
    return result


def _put_back(given: Given, edited: Tensor, keep: float) -> Callable[[slice | None], Tensor]:
    """A function of rows (None: all) that returns these rows of the delivered edits (N, 3, rows, W)."""
    size = (given.image.shape[-2], given.image.shape[-1])
    new, detail = kept_edit(given.small, edited, given.plain, keep) if keep > 0 else (edited, edited)

    def put(rows: slice | None) -> Tensor:
        image = given.image if rows is None else given.image[:, rows]
        if keep > 0:
            scaled_away = image - spread(given.small, size, rows)
            result = image + spread(new - given.small, size, rows) - spread(1 - detail, size, rows) * scaled_away
        else:
            seen = spread(torch.ones_like(given.plain[:, :1]), size, rows)
            result = image * (1 - seen) + spread(edited, size, rows)
        if given.mask is not None:
            mask = given.mask if rows is None else given.mask[:, rows]
            result = image + (mask.mean(0) >= 0.5).float() * (result - image)
        return result.clamp(0, 1)

    return put


def edited(desk: Desk, given: Given, watch: Callable[[State], None] | None = None) -> tuple[Tensor, int]:
    """The edits (N, 3, h, w) of one picture at the prior's size, one per prompt, and the network calls of each.

    `watch` sees every state of the way.
    """
    prompts, mask = prompts_of(desk.run.config), None
    editing = desk.begin(prompts)
    if given.mask is not None:
        mask = hidden_part(given.mask, given.image, desk.size, given.latents, "edit")
    draws = [generator(desk.seed, 0, "edit") for _ in prompts]
    states = editing.edit(given.latents.expand(len(prompts), -1, -1, -1), generator=draws, mask=mask)
    last = follow(states, editing.settings, watch)
    return desk.prior.decode(last).cpu(), editing.calls


def edit_picture(desk: Desk, given: Given) -> Figures:
    """Every prompt on one picture: files, a row of the sheet, figures."""
    prompts, settings = prompts_of(desk.run.config), desk.run.config.edit
    started = time.perf_counter()
    frames: list[Tensor] = []

    def watch(state: State) -> None:
        frames.append(state.x0_hat)

    made, calls = edited(desk, given, watch if settings.video else None)
    spent = {"network_calls": calls, "seconds": round(time.perf_counter() - started, 3)}
    seen = torch.stack([_written(desk, given, made, i) for i in range(len(prompts))])
    _write_videos(desk, given, frames, len(prompts))
    if len(desk.sheet) < SHOWN_ROWS:
        desk.sheet.append((given.name, [desk.seen(given.image), *seen]))
    return _figures(desk, given, seen) | spent


def _name(given: Given, i: int, prompts: int) -> str:
    return given.name if prompts == 1 else f"{given.name}-{i}"


def _written(desk: Desk, given: Given, edited: Tensor, i: int) -> Tensor:
    """Write edit i, `<name>.png` or `<name>-<i>.png` where there are several; the edit as it is measured and shown."""
    result = delivered(given, edited[i : i + 1], desk.run.config.edit.keep)[0]
    png(desk.run.save(f"{_name(given, i, len(edited))}.png"), result)
    return desk.seen(result)


def _figures(desk: Desk, given: Given, results: Tensor) -> Figures:
    """PSNR and SSIM against the picture, outside of a mask by themselves, and the judge's word, per prompt; all of them
    at `desk.shown` pixels at most."""
    image = desk.seen(given.image)
    white = None if given.mask is None else desk.seen((given.mask.mean(0, keepdim=True) >= 0.5).float())
    kept = None if white is None else (white == 0).float()[None]
    each: dict[str, Figures] = {}
    for prompt, result in zip(prompts_of(desk.run.config), results, strict=True):
        row = desk.likeness(result[None], image[None])
        if kept is not None:
            row["psnr_outside"] = desk.likeness(result[None], image[None], kept)["psnr"]
        each[prompt] = row | _judged(desk, prompt, result)
    bound = desk.likeness(given.plain, given.small)
    shared: Figures = {f"bound_{key}": value for key, value in bound.items()}
    if image.shape != given.image.shape:
        shared["figures_at"] = f"{image.shape[-1]} x {image.shape[-2]}"
        LOG.info("%s: figures and sheet are those of the picture scaled to %s", given.name, shared["figures_at"])
    return (next(iter(each.values())) | shared) if len(each) == 1 else shared | {"prompts": each}


def _judged(desk: Desk, prompt: str, result: Tensor) -> Figures:
    """Whether the judge sees the prompt's shape and colour; nothing where that cannot be told."""
    if not tellable(desk.run.config, prompt):
        return {}
    try:
        found, judge = known(prompt)
    except UserError as error:
        LOG.warning("nothing is judged: %s", error)
        return {}
    verdict = judge(result[None])
    shape = [*SHAPES, NONE][int(verdict.shape.argmax())]
    colour = list(COLOURS)[int(verdict.colour.argmax())]
    right = (shape, (colour,)) == (found.solid.name, found.colours)
    return {"judged_success": right, "judged_shape": shape, "judged_colour": colour}


def _write_videos(desk: Desk, given: Given, frames: list[Tensor], prompts: int) -> None:
    """`<name>-trajectory.mp4` of every prompt where frames were kept."""
    every = max(1, -(-len(frames) // SHOWN_FRAMES))
    for i in range(prompts if frames else 0):
        shown = [given.small[0], *(desk.prior.decode(x[i : i + 1])[0].cpu() for x in frames[::every])]
        path = desk.run.save(f"{_name(given, i, prompts)}-trajectory.mp4")
        for file in video(path, torch.stack(shown), desk.run.config.edit.fps):
            LOG.info("wrote %s", file)


def command(run: Run) -> int:
    """The edited pictures, `save/strip.png` (or `grid.png` of all), `metrics.json`."""
    desk, done, failed = over_pictures(run, edit_picture)
    if desk.sheet:
        rows = desk.sheet
        prompts = prompts_of(run.config)
        name = "strip.png" if len(rows) == len(prompts) == 1 else "grid.png"
        titles = [run.config.edit.source or "picture", *prompts]
        cell = max(64, min(256, rows[0][1][0].shape[-2]))
        sheet = contact_sheet(rows if len(rows) > 1 else [("", rows[0][1])], titles=titles, cell=cell)
        LOG.info("wrote %s", png(free(run, name), sheet))
    return report(run, done, failed)
