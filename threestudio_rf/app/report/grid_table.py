"""The results of a grid: one row per cell as CSV, means per method and prior as Markdown, one picture of all."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
import yaml
from torch import Tensor

from threestudio_rf.app.build.picture import read_picture
from threestudio_rf.app.errors import UserError, user_path, user_text
from threestudio_rf.app.report.curves import snapshots
from threestudio_rf.core.files import read_text, write_files
from threestudio_rf.export.letters import typeface
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.trainer.log import Metrics

Figures = Mapping[str, float | None]
TITLES = {
    "volume_iou": "volume IoU",
    "silhouette_iou": "outline IoU",
    "nearest_view_iou": "nearest view IoU",
    "colour_error": "colour error",
    "saturation": "saturation",
    "diversity": "diversity",
    "twin_loss_first": "twin's loss, first",
    "twin_loss_last": "last",
    "janus": "Janus",
    "recognised": "recognised",
    "seconds_per_step": "s / step",
    "calls_per_step": "calls / step",
    "seconds_to_right": "s to right",
    "network_calls_to_right": "calls to right",
    "peak_memory_mb": "MB",
}
FIGURES = (*TITLES, "chamfer", "diversity_latent", "seconds", "network_calls", "steps")
MISSING_IS_ZERO = ("volume_iou", "silhouette_iou", "nearest_view_iou", "recognised")
CELL = 128


@dataclass(frozen=True)
class Result:
    """One cell: its labels, the figures of its finished run (None: it has none, `error` says why), the run's folder."""

    method: str
    prior: str
    prompt: str
    seed: int
    figures: Figures | None
    error: str
    run: Path | None

    @property
    def steps(self) -> float:
        """Steps of the run by its record, NaN where that is broken."""
        if self.run is None:
            return math.nan
        try:
            return float(yaml.safe_load(read_text(self.run / "configs/parsed.yaml"))["trainer"]["steps"])
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            return math.nan

    def row(self) -> dict[str, float | None]:
        """The figures by the names of `FIGURES`, those per step among them."""
        if self.figures is None or self.run is None:
            return {}
        steps = self.steps
        seconds, calls = (self.figures.get(name) or 0.0 for name in ("seconds", "network_calls"))
        found = dict(self.figures) | {"steps": steps, "seconds_per_step": seconds / steps}
        found["calls_per_step"] = calls / steps
        found |= twin_losses(self.run)
        return {name: found.get(name) for name in FIGURES}


def twin_losses(run: Path) -> dict[str, float | None]:
    """Means of a twin's loss over the first and the last fifth of a run; empty without a twin."""
    values = [row["twin_loss"] for row in Metrics(run / "csv_logs/metrics.csv").rows() if "twin_loss" in row]
    fifth = -(-len(values) // 5)
    return {"twin_loss_first": fmean(values[:fifth]), "twin_loss_last": fmean(values[-fifth:])} if values else {}


def csv_text(results: Sequence[Result]) -> str:
    """One line per cell, finished or not; figures that no cell has are left out."""
    rows = [result.row() for result in results]
    names = [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "prior", "prompt", "seed", "status", *names, "error", "run"])
    for result, row in zip(results, rows, strict=True):
        numbers = ["" if row.get(name) is None else f"{row[name]:.6g}" for name in names]
        status = "finished" if result.figures is not None else "failed"
        run = "" if result.run is None else f"{result.run.parent.name}/{result.run.name}"
        writer.writerow([result.method, result.prior, result.prompt, result.seed, status, *numbers, result.error, run])
    return buffer.getvalue()


def means(results: Sequence[Result]) -> dict[str, float | None]:
    """Mean of each figure over the cells that have it; a failed cell counts as 0 in accuracy and IoU."""
    rows = [result.row() for result in results]
    found: dict[str, float | None] = {}
    for name in TITLES:
        values = [value for row in rows if (value := row.get(name)) is not None]
        if name in MISSING_IS_ZERO and values:
            values += [0.0] * sum(result.figures is None for result in results)
        found[name] = fmean(values) if values else None
    return found


def table(results: Sequence[Result]) -> str:
    """The means over prompts and seeds per method and prior, in the order of their first cells."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.prior, result.method), []).append(result)
    rows = {key: means(group) for key, group in groups.items()}
    names = [name for name in TITLES if any(row[name] is not None for row in rows.values())]
    head = ["prior", "method", "runs", *(TITLES[name] for name in names)]
    lines = [_line(head), "|---|---|" + "--:|" * (len(head) - 2)]
    for prior in dict.fromkeys(prior for prior, _ in groups):
        for (owner, method), group in groups.items():
            if owner == prior:
                cells = [_cell(name, rows[owner, method][name], group) for name in names]
                good = sum(result.figures is not None for result in group)
                lines.append(_line([prior, method, f"{good}/{len(group)}", *cells]))
    return "\n".join(lines)


def _cell(name: str, value: float | None, group: Sequence[Result]) -> str:
    """A mean; of times that not all cells have, with the number of those that do."""
    if value is None:
        return "-"
    count = sum(result.row().get(name) is not None for result in group)
    some = f" ({count}/{len(group)})" if name.endswith("_to_right") and count < len(group) else ""
    return f"{value:.3g}{some}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def failures(results: Sequence[Result]) -> str:
    """The cells without figures and why; empty when all have finished."""
    lines = [
        f"- {r.method}, {r.prior}, {r.prompt!r}, seed {r.seed}: {r.error or 'no figures'}"
        for r in results
        if r.figures is None
    ]
    return "\n".join(["Without figures:", "", *lines]) if lines else ""


def thumbnail(run: Path | None) -> Tensor:
    """Four pictures of a run as one (3, 2 H, 2 W): quarter turns of an object, or the first particles of the last
    snapshot; light grey where there is none."""
    frames: list[Path] = []
    if run is not None:
        turns = sorted(run.glob("save/it*-test/*.png"), key=lambda path: int(path.stem))
        taken = list(snapshots(run).values())
        frames = [turns[len(turns) * i // 4] for i in range(4)] if turns else (taken[-1] if taken else [])
    if not frames:
        return torch.full((3, CELL, CELL), 0.85)
    four = [read_picture(path, "picture") for path in frames[:4]]
    four += [torch.full_like(four[0], 0.85)] * (4 - len(four))
    return torch.cat([torch.cat(four[:2], 2), torch.cat(four[2:], 2)], 1)


def sheet(results: Sequence[Result]) -> Tensor:
    """Rows are methods, columns are prompts and seeds, one block of them per prior; (3, H, W)."""
    methods = [*dict.fromkeys(result.method for result in results)]
    priors = [*dict.fromkeys(result.prior for result in results)]
    blocks = []
    for prior in priors:
        chosen = [result for result in results if result.prior == prior]
        columns = [*dict.fromkeys((result.prompt, result.seed) for result in chosen)]
        at = {(result.method, result.prompt, result.seed): result.run for result in chosen}
        rows = [(method, [thumbnail(at.get((method, *column))) for column in columns]) for method in methods]
        several = len({seed for _, seed in columns}) > 1
        titles = [f"{prompt} {seed}" if several else prompt for prompt, seed in columns]
        blocks.append(_headed(contact_sheet(rows, titles=titles, cell=CELL), prior))
    return torch.cat(blocks, 2)


def _headed(picture: Tensor, title: str) -> Tensor:
    """A picture (3, H, W) under its title."""
    import numpy as np
    from PIL import Image, ImageDraw

    size, drawn = CELL // 6, typeface([title])
    strip = Image.new("RGB", (picture.shape[2], size + 8), "white")
    ImageDraw.Draw(strip).text((4, 2), drawn.lines[0], fill="black", font=drawn.at(size))
    return torch.cat([torch.from_numpy(np.array(strip)).permute(2, 0, 1) / 255, picture], 1)


def write_grid(folder: Path, results: Sequence[Result], *, title: str, docs: str = "") -> list[Path]:
    """grid.csv, grid.md and grid.png; with `docs` the tables and the picture also go into that Markdown file, between
    its lines `<!-- <title> -->` and `<!-- end of <title> -->`. UserError when it has no such lines."""
    parts = [table(results), failures(results)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    picture = png(folder / "grid.png", sheet(results))
    files = {folder / "grid.csv": csv_text(results).encode(), folder / "grid.md": f"# {title}\n\n{text}".encode()}
    files[folder / "grid.md"] += b"\n![All cells](grid.png)\n"
    if docs:
        page = user_path(docs, "grid.docs")
        files |= _inserted(page, title, f"{text}\n![{title}](images/{title}.png)\n")
        files |= {page.parent / "images" / f"{title}.png": picture.read_bytes()}
    write_files(files)
    return [*files, picture]


def _inserted(page: Path, title: str, text: str) -> dict[Path, bytes]:
    """The file with `text` between its two lines."""
    marks = f"<!-- {title} -->\n", f"<!-- end of {title} -->"
    before = user_text(page, "grid.docs")
    if not all(mark in before for mark in marks):
        raise UserError(f"grid.docs={page}: expected the lines {marks[0].strip()} and {marks[1]} in it")
    head, _, rest = before.partition(marks[0])
    return {page: f"{head}{marks[0]}\n{text}\n{marks[1]}{rest.partition(marks[1])[2]}".encode()}
