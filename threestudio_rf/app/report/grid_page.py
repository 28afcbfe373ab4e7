"""index.html of a grid: for each prompt its cells by method and prior, each with its picture, figure and run."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from torch.nn import functional

from threestudio_rf.app.report.grid_table import TITLES, Result, means, thumbnail
from threestudio_rf.app.report.page import STYLE, lead
from threestudio_rf.core.files import write_text
from threestudio_rf.export.media import png_bytes

Group = tuple[str, str]
"""Prior and method."""
SIZE = 192
"""Pixels of a cell's picture."""


def write_grid_page(folder: Path, results: Sequence[Result], title: str) -> Path:
    """Write `folder/index.html`: the means, then a table of every prompt and seed. Pictures are inside the page, runs
    are linked. OSError when it cannot be written."""
    name = html.escape(title)
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{name}</title><style>{STYLE}th{{text-align:left}}</style>",
        "<meta name='viewport' content='width=device-width'>",
        f"<h1>{name}</h1>",
        "<p>Files: <a href='grid.csv'>grid.csv</a>, <a href='grid.md'>grid.md</a>, <a href='grid.png'>grid.png</a></p>",
        "<h2>Means</h2>" + _means(results),
    ]
    several = len({result.seed for result in results}) > 1
    for prompt, seed in dict.fromkeys((result.prompt, result.seed) for result in results):
        chosen = [result for result in results if (result.prompt, result.seed) == (prompt, seed)]
        parts.append(f"<h2>{html.escape(f'{prompt}, seed {seed}' if several else prompt)}</h2>{_cells(folder, chosen)}")
    path = folder / "index.html"
    write_text(path, "\n".join(parts) + "\n")
    return path


def _means(results: Sequence[Result]) -> str:
    """Means over prompts and seeds, one row per prior and method."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        groups.setdefault((result.prior, result.method), []).append(result)
    rows = {group: means(found) for group, found in groups.items()}
    names = [name for name in TITLES if any(row[name] is not None for row in rows.values())]
    lines = [_row("th", ["prior", "method", *(TITLES[name] for name in names)])]
    for group, row in rows.items():
        values = [row[name] for name in names]
        lines.append(_row("td", [*group, *("-" if value is None else f"{value:.3g}" for value in values)]))
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"


def _cells(folder: Path, results: Sequence[Result]) -> str:
    """Methods down, priors across."""
    at = {(result.method, result.prior): result for result in results}
    methods, priors = (list(dict.fromkeys(pair[i] for pair in at)) for i in (0, 1))
    lines = [_row("th", ["", *priors])]
    for method in methods:
        found = [at.get((method, prior)) for prior in priors]
        cells = "".join(f"<td>{'' if result is None else _cell(folder, result)}</td>" for result in found)
        lines.append(f"<tr><th>{html.escape(method)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(folder: Path, result: Result) -> str:
    """Picture and lead figure of a finished cell, linked to the page of its run; the error of another."""
    if result.figures is None or result.run is None:
        return html.escape(result.error or "no figures")
    page = result.run / "index.html"
    place = quote((page if page.exists() else result.run).relative_to(folder).as_posix(), safe="/@+")
    small = functional.interpolate(thumbnail(result.run)[None], (SIZE, SIZE), mode="area")[0]
    picture = base64.b64encode(png_bytes(small)).decode()
    return (
        f'<figure><a href="{place}"><img src="data:image/png;base64,{picture}" width="{SIZE}" alt=""></a>'
        f"<figcaption>{lead(dict(result.figures))}</figcaption></figure>"
    )
