"""index.html of a run folder: pictures, figures, curves and settings in one page that needs nothing from outside."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from threestudio_rf.app.run.folder import read_object
from threestudio_rf.core.files import write_text
from threestudio_rf.trainer.log import Metrics

CURVES = ("loss", "residual_norm", "opacity", "grad_norm")
WIDTH, HEIGHT = 320, 120
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}img,video{max-width:100%}"
    "td{padding:0 1em 0 0}pre{background:#f4f4f4;padding:1em;overflow:auto}"
    "figure{display:inline-block;margin:0 1em 1em 0}"
)


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as SVG, with its smallest and largest value."""
    finite = [(x, y) for x, y in points if abs(y) < float("inf")]
    if len(finite) < 2:
        return ""
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    wide, high = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
    path = " ".join(f"{(x - min(xs)) / wide * WIDTH:.1f},{(1 - (y - min(ys)) / high) * HEIGHT:.1f}" for x, y in finite)
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" style="border:1px solid #ccc">'
        f'<polyline points="{path}" fill="none" stroke="#06c"/></svg>'
        f"<figcaption>{html.escape(name)}: {min(ys):.3g} to {max(ys):.3g}</figcaption></figure>"
    )


def _table(values: dict[str, object]) -> str:
    cells = (f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table>{''.join(cells)}</table>"


def _media(folder: Path) -> str:
    pictures = [path for kind in ("*-sheet.png", "*-strip.png", "curves.png") for path in folder.glob(f"save/{kind}")]
    parts = [f'<p><img src="save/{path.name}" alt="{path.stem}"></p>' for path in pictures]
    parts += [f'<p><video src="save/{p.name}" controls loop muted></video></p>' for p in folder.glob("save/*-test.mp4")]
    meshes = sorted(folder.glob("save/*-export/model.*"))
    links = (f'<a href="{path.relative_to(folder).as_posix()}">{path.name}</a>' for path in meshes)
    return "".join(parts) + (f"<p>mesh: {', '.join(links)}</p>" if meshes else "")


def write_report(folder: Path, title: str) -> Path:
    """Write `index.html` from what lies in the run folder. OSError when it cannot be written."""
    rows = Metrics(folder / "csv_logs" / "metrics.csv").rows()
    curves = (curve(name, [(row["step"], row[name]) for row in rows if name in row]) for name in CURVES)
    figures = read_object(folder / "metrics.json")
    about = {
        key: value for key, value in read_object(folder / "run.json").items() if key in ("started", "commit", "prior")
    }
    settings = (folder / "configs" / "parsed.yaml").read_text(encoding="utf-8", errors="replace")
    command = (folder / "cmd.txt").read_text(encoding="utf-8", errors="replace")
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(title)}</h1>",
        _media(folder),
        "<h2>Figures</h2>" + _table(figures) if figures else "",
        "<h2>Curves</h2>" + "".join(curves),
        "<h2>Run</h2>" + _table(about),
        f"<pre>{html.escape(command)}</pre><details><summary>settings</summary><pre>{html.escape(settings)}</pre></details>",
    ]
    path = folder / "index.html"
    write_text(path, "\n".join(part for part in parts if part) + "\n")
    return path
