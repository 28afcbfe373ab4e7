"""index.html of a run folder: the object to turn, its video, figures, curves and settings, in one file that needs
nothing from outside: what fits is inside it, the rest is linked beside it."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from threestudio_rf.app.report.score import MEANING, meaning
from threestudio_rf.app.run.folder import read_object
from threestudio_rf.core.files import read_text, write_text
from threestudio_rf.trainer.log import Metrics

CURVES = ("loss", "residual_norm", "opacity", "grad_norm")
WIDTH, HEIGHT = 320, 120
LARGEST = 5_500_000
"""Characters of a page that files may take."""
KINDS = {".png": "image/png", ".mp4": "video/mp4", ".gif": "image/gif"}
LEADS = ("volume_iou", "nearest_view_iou")
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}img,video{max-width:100%}"
    "td{padding:0 1em 0 0;vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    "pre{background:#f4f4f4;padding:1em;overflow:auto}figure{display:inline-block;margin:0 1em 1em 0}"
    "canvas{width:384px;height:384px;max-width:100%;touch-action:none;cursor:grab;background:#b3b3b3}"
    ".side{display:flex;flex-wrap:wrap;gap:1em}figcaption{color:#555}"
)
STEP = re.compile(r"it(\d+)-")
TURN = Path(__file__).with_name("turn.js")


class Room:
    """Bytes that a page still has room for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.left = folder, LARGEST

    def encoded(self, path: Path) -> str | None:
        """A file in base64, or None where there is no room for it."""
        size = 4 * path.stat().st_size // 3 + 4
        if size > self.left:
            return None
        self.left -= size
        return base64.b64encode(path.read_bytes()).decode()

    def link(self, path: Path) -> str:
        """The address of a file beside the page."""
        return quote(path.relative_to(self.folder).as_posix())

    def source(self, path: Path) -> str:
        """The file itself, or its address where there is no room for it."""
        inside = self.encoded(path)
        return self.link(path) if inside is None else f"data:{KINDS[path.suffix]};base64,{inside}"


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as SVG, with the ends of its axes."""
    finite = [(x, y) for x, y in points if abs(y) < float("inf")]
    if len(finite) < 2:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    wide, high = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    path = " ".join(f"{(x - min(xs)) / wide * WIDTH:.1f},{(1 - (y - min(ys)) / high) * HEIGHT:.1f}" for x, y in finite)
    ends = (
        (-4, 10, "end", f"{max(ys):.3g}"),
        (-4, HEIGHT, "end", f"{min(ys):.3g}"),
        (0, HEIGHT + 14, "start", f"{min(xs):g}"),
        (WIDTH, HEIGHT + 14, "end", f"step {max(xs):g}"),
    )
    texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in ends)
    return (
        f'<figure><svg width="{WIDTH + 66}" height="{HEIGHT + 24}" viewBox="-60 -4 {WIDTH + 66} {HEIGHT + 24}"'
        f' style="font-size:11px"><rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#ccc"/>{texts}'
        f'<polyline points="{path}" fill="none" stroke="#06c"/></svg>'
        f"<figcaption>{html.escape(name)}: {min(ys):.3g} to {max(ys):.3g}</figcaption></figure>"
    )


def _table(values: dict[str, object]) -> str:
    cells = (f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table>{''.join(cells)}</table>"


def figure_cells(key: str, value: object) -> tuple[str, str]:
    """A figure as it is shown, and what it means, in words."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    shown = "-" if value is None else str(value) if number is None else f"{number:.4g}"
    words = meaning(key, number) if key in MEANING else ""
    return html.escape(shown), html.escape(words)


def _figures(values: dict[str, object]) -> str:
    rows = ((key, *figure_cells(key, value)) for key, value in values.items() if not isinstance(value, dict))
    cells = (f"<tr><td>{html.escape(key)}</td><td class='n'>{v}</td><td>{words}</td></tr>" for key, v, words in rows)
    nested = {key: json.dumps(value) for key, value in values.items() if isinstance(value, dict)}
    return f"<table>{''.join(cells)}</table>" + (_table(dict(nested)) if nested else "")


def lead(values: dict[str, object]) -> str:
    """The figure that counts first, in words; empty without it."""
    key = next((key for key in LEADS if isinstance(values.get(key), int | float)), None)
    return "" if key is None else f"{key} {figure_cells(key, values[key])[0]}: {figure_cells(key, values[key])[1]}"


def last(folder: Path, pattern: str) -> list[Path]:
    """The files of a pattern below `save/`, those of the latest step alone where they are of several."""
    files = [path for path in folder.glob(f"save/{pattern}") if path.is_file()]
    found = {path: STEP.match(path.relative_to(folder).parts[1]) for path in files}
    steps = {path: int(match[1]) for path, match in found.items() if match is not None}
    newest = max(steps.values(), default=0)
    return sorted(path for path in files if steps.get(path, newest) == newest)


def _object(room: Room, folder: Path) -> str:
    """The GLB to turn; a word where there is none, or it is too large."""
    found = last(folder, "*-export/model.glb")
    if not found:
        return ""
    inside = room.encoded(found[0])
    if inside is None:
        return f"<p>{found[0].name} is too large to be shown here.</p>"
    return (
        '<figure><canvas id="object"></canvas><figcaption>drag to turn, wheel to come nearer; '
        '<label><input type="checkbox" id="light"> lit</label></figcaption></figure>'
        f'<script type="application/octet-stream" id="glb">{inside}</script>'
        f'<script type="module">{TURN.read_text(encoding="utf-8")}</script>'
    )


def _video(room: Room, path: Path, words: str) -> str:
    return (
        f'<figure><video src="{room.source(path)}" width="384" autoplay loop muted playsinline controls></video>'
        f"<figcaption>{html.escape(words)}</figcaption></figure>"
    )


def _media(folder: Path) -> str:
    room = Room(folder)
    top = [_object(room, folder)] + [_video(room, path, "one turn") for path in last(folder, "*-test.mp4")]
    top += [_video(room, path, "while it was trained") for path in last(folder, "progress.mp4")]
    top += [_video(room, path, path.stem) for path in last(folder, "*-trajectory.mp4")]
    pictures = [path for kind in ("*sheet.png", "*grid.png", "*strip.png", "curves.png") for path in last(folder, kind)]
    if not pictures:
        pictures = last(folder, "it*-[0-9].png")
    below = [
        f'<p><img src="{room.source(path)}" alt="{html.escape(path.stem)}"></p>' for path in dict.fromkeys(pictures)
    ]
    files = last(folder, "*-export/*") + last(folder, "*.mp4") + list(dict.fromkeys(pictures))
    links = (f'<a href="{room.link(path)}">{html.escape(path.name)}</a>' for path in files)
    return f'<div class="side">{"".join(top)}</div>{"".join(below)}<p>files: {", ".join(links)}</p>'


def write_report(folder: Path, title: str) -> Path:
    """Write `index.html` from what lies in the run folder. OSError when it cannot be written."""
    rows = Metrics(folder / "csv_logs" / "metrics.csv").rows()
    curves = "".join(curve(name, [(row["step"], row[name]) for row in rows if name in row]) for name in CURVES)
    figures = read_object(folder / "metrics.json")
    kept = ("started", "commit", "prior")
    about = {key: value for key, value in read_object(folder / "run.json").items() if key in kept}
    settings = read_text(folder / "configs" / "parsed.yaml", "replace")
    command = read_text(folder / "cmd.txt", "replace")
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>",
        "<meta name='viewport' content='width=device-width'>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>{lead(figures)}</b></p>" if lead(figures) else "",
        _media(folder),
        "<h2>Figures</h2>" + _figures(figures) if figures else "",
        "<h2>Curves</h2>" + curves if curves else "",
        "<h2>Run</h2>" + _table(about),
        f"<pre>{html.escape(command)}</pre><details><summary>settings</summary><pre>{html.escape(settings)}</pre></details>",
    ]
    path = folder / "index.html"
    write_text(path, "\n".join(part for part in parts if part) + "\n")
    return path
