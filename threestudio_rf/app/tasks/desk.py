"""The common part of task=edit and task=invert: the given pictures, prior, solver states, table of figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.app.build.check.edit import name_of, prompts_of
from threestudio_rf.app.build.hints import tell
from threestudio_rf.app.build.picture import bounded, check_mask, fitted, read_mask, read_picture, suffixes
from threestudio_rf.app.build.sampling import picture_size
from threestudio_rf.app.build.scene import build_prior
from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.build.words import warn_unknown_words
from threestudio_rf.app.console import LOG, Progress
from threestudio_rf.app.errors import FAILED, GOOD, UserError, user_path
from threestudio_rf.app.report.likeness import likeness
from threestudio_rf.app.report.lpips import LPIPS, load_lpips
from threestudio_rf.app.run.run import Run
from threestudio_rf.core.files import write_text
from threestudio_rf.core.sample import State
from threestudio_rf.edit.method import Settings, states_of
from threestudio_rf.priors.base import Prior
from threestudio_rf.trainer.edit import Editing, begin

Figures = dict[str, Any]
SHOWN = 512
"""Pixels along the longer side of a picture up to which it is measured as it is, whatever the prior's size."""


@dataclass(frozen=True)
class Given:
    """One picture (3, H, W) and its mask, its name in the run folder, and what the prior makes of it: fitted
    (1, 3, h, w), latents (1, C, h', w'), and those decoded, `plain` (1, 3, h, w)."""

    name: str
    image: Tensor
    mask: Tensor | None
    small: Tensor
    latents: Tensor
    plain: Tensor


@dataclass(frozen=True)
class Desk:
    """The common part of all pictures of one command. The prior is loaded for the first picture that can be read,
    unless one is given."""

    run: Run
    given_prior: Prior | None = None
    sheet: list[tuple[str, list[Tensor]]] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.run.config.seed

    @cached_property
    def lpips(self) -> LPIPS | None:
        """The perceptual distance of `edit.lpips`; None where no folder of weights is named."""
        folder = self.run.config.edit.lpips
        return load_lpips(folder) if folder else None

    def likeness(self, one: Tensor, other: Tensor, part: Tensor | None = None) -> Figures:
        """PSNR and SSIM of two pictures (1, 3, H, W), PSNR over `part` where one is given; LPIPS where its weights are
        given and a picture has the 32 pixels it needs."""
        found: Figures = dict(likeness(one, other, part))
        if self.lpips is not None and min(one.shape[-2:]) >= 32:
            found["lpips"] = float(self.lpips(one, other))
        return found

    @cached_property
    def prior(self) -> Prior:
        """The given prior, or that of the settings, loaded once; words that it does not know are warned of."""
        config = self.run.config
        if self.given_prior is not None:
            return self.given_prior
        warn_unknown_words(" ".join([config.edit.source, *prompts_of(config)]), config.prior.name)
        return build_prior(config.prior, self.run.device)

    @cached_property
    def method(self) -> Settings:
        """The settings of the editing or inversion method that the task names."""
        config = self.run.config
        return method_of(name_of(config), config.prior.name, config.edit)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels, of the pictures that the prior makes."""
        return picture_size(self.prior, self.run.device)

    @cached_property
    def shown(self) -> int:
        """The longest side, in pixels, at which an edit is measured and shown on a sheet."""
        return max(SHOWN, *self.size)

    def seen(self, image: Tensor) -> Tensor:
        """A picture (C, H, W) at that size; one that is no larger as it is."""
        return bounded(image, self.shown)

    def begin(self, prompts: list[str]) -> Editing:
        """The prior bound to the source and to `prompts`; UserError for what its path does not have."""
        source = [self.run.config.edit.source]
        try:
            editing = begin(self.prior, self.method, source=source, target=prompts)
        except ValueError as error:
            raise UserError(f"edit.method={name_of(self.run.config)}, prior {self.prior.name}: {error}") from None
        tell(self.prior, lambda: self.prior.embed(source), "edit")
        return editing

    @torch.no_grad()
    def take(self, name: str, image: Tensor, mask: Tensor | None) -> Given:
        """The picture at the prior's size and through its first stage."""
        small = fitted(image, self.size, "edit.image")
        latents = self.prior.encode(small.to(self.run.device))
        return Given(name, image, mask, small, latents, self.prior.decode(latents).cpu())


Work = Callable[[Desk, Given], Figures]


def pictures_of(image: str) -> list[Path]:
    """The file, or the pictures of the folder in the order of their names; UserError when it has none."""
    path = user_path(image, "edit.image")
    if not path.is_dir():
        return [path]
    inside = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    known = suffixes()
    found = [file for file in inside if file.is_file() and file.suffix.lower() in known]
    left = ", ".join(f"{file.name}/" if file.is_dir() else file.name for file in inside if file not in found)
    if not found:
        only = f"; there are {left}" if left else ""
        raise UserError(f"edit.image={path}: the folder has no pictures (PNG, JPEG, WebP and others are read){only}")
    if left:
        LOG.warning("left out: %s", left)
    return found


def names_of(paths: list[Path]) -> dict[Path, str]:
    """A name in the run folder for each picture, of which no two are equal, in capitals or not: its stem, with its
    ending where others have that stem, with a number where even that is taken."""
    stems = [path.stem.casefold() for path in paths]
    taken: set[str] = set()
    names: dict[Path, str] = {}
    for path in sorted(paths, key=lambda path: stems.count(path.stem.casefold())):
        plain = path.stem if stems.count(path.stem.casefold()) == 1 else path.name.replace(".", "_")
        tries = (plain, *(f"{plain}_{number}" for number in range(2, len(paths) + 2)))
        names[path] = next(name for name in tries if name.casefold() not in taken)
        taken.add(names[path].casefold())
    return names


def free(run: Run, name: str) -> Path:
    """A path below `save/` that no file of the run has: `name`, else all-`name` and so on."""
    while run.save(name).exists():
        name = f"all-{name}"
    return run.save(name)


def _read(path: Path, mask: Tensor | None) -> Tensor:
    image = read_picture(path, "edit.image")
    if mask is not None:
        check_mask(mask, image, "edit")
    return image


def over_pictures(run: Run, work: Work) -> tuple[Desk, dict[str, Figures], dict[str, str]]:
    """`work` on every picture; figures by file name, and why the pictures that could not be read failed.

    A single file that cannot be read raises UserError, as a folder without weights of LPIPS does, before the prior is
    loaded.
    """
    settings, desk = run.config.edit, Desk(run)
    _ = desk.lpips
    paths = pictures_of(settings.image)
    mask = read_mask(settings.mask, "edit.mask") if settings.mask else None
    names = names_of(paths)
    done: dict[str, Figures] = {}
    failed: dict[str, str] = {}
    for path in paths:
        try:
            image = _read(path, mask)
        except UserError as error:
            if not user_path(settings.image, "edit.image").is_dir():
                raise
            failed[path.name] = str(error)
            continue
        done[path.name] = work(desk, desk.take(names[path], image, mask))
    return desk, done, failed


def follow(states: Iterable[State], settings: Settings, keep: Callable[[State], None] | None = None) -> Tensor:
    """x of the last state, with progress; `keep` sees every state."""
    progress, x = Progress(states_of(settings)), torch.empty(0)
    for number, state in enumerate(states, 1):
        progress.update(number, {"t": f"{float(state.t[0]):.3f}"})
        if keep is not None:
            keep(state)
        x = state.x
    progress.close()
    return x


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: dict[str, Figures]) -> str:
    """Figures as a Markdown table, one row each."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [" | ".join(["", *columns]).strip(), " | ".join(["---"] * (len(columns) + 1))]
    lines += [" | ".join([name, *(_cell(row.get(key)) for key in columns)]) for name, row in rows.items()]
    return "\n".join(f"| {line} |" for line in lines)


def report(run: Run, done: dict[str, Figures], failed: dict[str, str]) -> int:
    """`metrics.json`, for a folder `save/table.md` too; files that failed are told at the end. The exit code."""
    single = len(done) == 1 and not failed and not user_path(run.config.edit.image, "edit.image").is_dir()
    figures: Figures = next(iter(done.values())) if single else {"pictures": done, "failed": failed}
    write_text(run.folder / "metrics.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    rows = _rows(done)
    if single and len(rows) == 1:
        for key, value in next(iter(rows.values())).items():
            LOG.info("%-16s %10s", key, _cell(value))
    elif rows:
        text = table(rows)
        LOG.info("%s", text)
        write_text(run.save("table.md"), text + "\n")
    for name, reason in failed.items():
        LOG.error("failed: %s: %s", name, reason)
    if failed:
        LOG.info("%d of %d pictures are done", len(done), len(done) + len(failed))
    return FAILED if failed else GOOD


def _rows(done: dict[str, Figures]) -> dict[str, Figures]:
    """One row per picture, or per picture and prompt."""
    rows: dict[str, Figures] = {}
    for name, figures in done.items():
        shared = {key: value for key, value in figures.items() if key != "prompts"}
        each = figures.get("prompts", {})
        rows |= {f"{name}: {prompt}": own | shared for prompt, own in each.items()} if each else {name: shared}
    return rows
