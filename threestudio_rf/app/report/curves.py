"""save/curves.png of a run folder: what happened, on one page, from what lies in the folder."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from threestudio_rf.app.build.picture import read_picture
from threestudio_rf.core.files import write_files
from threestudio_rf.export.letters import drawable
from threestudio_rf.export.media import contact_sheet
from threestudio_rf.trainer.log import Metrics

PAGE = (8.27, 11.69)
COLUMNS, ROWS = 8, 4
SNAPSHOTS = (re.compile(r"it(\d+)-(\d+)\.png"), re.compile(r"(\d{5,})_(\d{2,})\.png"))
"""save/it<step>-<view>.png of an object, <step>_<particle>.png of pictures."""
Row = dict[str, float]
Item = TypeVar("Item")


def snapshots(folder: Path) -> dict[int, list[Path]]:
    """The pictures taken while the run went on, by step, in the order of their numbers."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in (*folder.glob("save/it*.png"), *folder.glob("*_*.png")):
        match = next(filter(None, (pattern.fullmatch(path.name) for pattern in SNAPSHOTS)), None)
        if match is not None:
            found.setdefault(int(match[1]), []).append((int(match[2]), path))
    return {step: [path for _, path in sorted(found[step])] for step in sorted(found)}


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def speed(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(step, steps per second) between rows that both have `seconds`."""
    timed = [row for row in rows if "seconds" in row]
    pairs = ((a, b) for a, b in pairwise(timed) if b["seconds"] > a["seconds"])
    return [(b["step"], (b["step"] - a["step"]) / (b["seconds"] - a["seconds"])) for a, b in pairs]


def strip(taken: dict[int, list[Path]], cell: int, *, rows: int = COLUMNS) -> Tensor:
    """The first pictures along time (3, H, W): a row per picture, a column per step, evenly chosen."""
    steps = spread(list(taken), COLUMNS)
    count = min(rows, *(len(taken[step]) for step in steps))
    lines = [("", [read_picture(taken[step][i], "snapshot") for step in steps]) for i in range(count)]
    return contact_sheet(lines, titles=[str(step) for step in steps], cell=cell)


def series(rows: Sequence[Row], across: str, name: str) -> list[tuple[float, float]]:
    """The finite points of two columns."""
    points = [(row[across], row[name]) for row in rows if across in row and name in row]
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def write_curves(folder: Path, title: str) -> Path | None:
    """Loss and a twin's, residual norm by t, gradient norm, opacity, t and it/s over steps, and the snapshots along
    time. None when there is nothing to draw yet; OSError when the disk is full."""
    rows = Metrics(folder / "csv_logs" / "metrics.csv").rows()
    if not rows:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    figure = Figure(figsize=PAGE)
    canvas = FigureCanvasAgg(figure)
    drawn = drawable([title])
    if drawn is not None:  # else no font of this machine can write it
        font = FontProperties(fname=drawn.file, size=11)
        figure.suptitle(drawn.lines[0], fontproperties=font, parse_math=False)
    axes = figure.subplots(3, 2)
    figure.subplots_adjust(left=0.08, right=0.97, top=0.94, bottom=0.44, hspace=0.4, wspace=0.2)
    _line(axes[0, 0], series(rows, "step", "loss"), "loss", log=True)
    twin = series(rows, "step", "twin_loss")
    if twin:
        axes[0, 0].plot(*zip(*twin, strict=True), "-", color="grey", linewidth=1, label="twin")
        axes[0, 0].legend(fontsize=7)
    _scatter(axes[0, 1], rows)
    _line(axes[1, 0], series(rows, "step", "grad_norm"), "norm of the gradient", log=True)
    _line(axes[1, 1], series(rows, "step", "opacity"), "opacity")
    _line(axes[2, 0], series(rows, "step", "t"), "t", dots=True)
    _line(axes[2, 1], speed(rows), "steps per second")
    taken = snapshots(folder)
    if taken:
        below = figure.add_axes((0.03, 0.01, 0.94, 0.38))
        below.set_axis_off()
        below.imshow(strip(taken, 128, rows=ROWS).permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    path = folder / "save" / "curves.png"
    write_files({path: buffer.getvalue()})
    return path


def _frame(axis: Any, title: str, across: str = "step") -> None:
    axis.set_title(title, fontsize=9, y=1.0)
    axis.set_xlabel(across, fontsize=8)
    axis.xaxis.set_label_coords(0.5, -0.15)  # both at places of their own: to look for free ones takes half the time
    axis.tick_params(labelsize=7, which="both")
    axis.grid(alpha=0.3)
    axis.locator_params(nbins=5)


def _line(
    axis: Any, points: Sequence[tuple[float, float]], title: str, *, log: bool = False, dots: bool = False
) -> None:
    _frame(axis, title)
    axis.plot(*zip(*points, strict=True) if points else ([], []), "." if dots else "-", linewidth=1, markersize=3)
    values = [y for _, y in points]
    if log and values and min(values) > 0 and max(values) >= 10 * min(values):
        axis.set_yscale("log")
        axis.minorticks_off()


def _scatter(axis: Any, rows: Sequence[Row]) -> None:
    _frame(axis, "norm of the residual by t (colour: step)", "t")
    known = [row for row in rows if all(math.isfinite(row.get(key, math.nan)) for key in ("t", "residual_norm"))]
    axis.scatter(
        [row["t"] for row in known],
        [row["residual_norm"] for row in known],
        c=[row["step"] for row in known],
        s=6,
        cmap="viridis",
    )
    axis.set_xlim(0, 1)
