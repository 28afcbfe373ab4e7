"""index.html above the run folders: every run with its picture, prompt, figure, method and time; some side by side."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import quote

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import GOOD, USER_ERROR
from threestudio_rf.app.report.page import STYLE, last, lead, write_report
from threestudio_rf.app.run.folder import read_object
from threestudio_rf.app.settings.config import Config
from threestudio_rf.core.files import write_text

MOST = 300
STAMP = re.compile(r"@(\d{8}-\d{6}.*)$")
PICTURES = ("*-test/0.png", "00000.png", "*sheet.png", "*grid.png", "*strip.png", "*.png")
"""Where the picture of a run is looked for, the best place first."""
COMPARE = """<script type="module">
const side = document.getElementById("side");
const boxes = [...document.querySelectorAll("input.run")];
const show = () => side.replaceChildren(...boxes.filter((box) => box.checked).map((box) => {
  const figure = document.createElement("figure"), words = document.createElement("figcaption");
  const row = box.closest("tr"), picture = row.querySelector("img");
  if (picture) {
    const large = picture.cloneNode();
    large.removeAttribute("height");
    large.width = 256;
    figure.append(large);
  }
  words.textContent = [...row.querySelectorAll("td.word")].map((cell) => cell.textContent).filter(Boolean).join(" | ");
  figure.append(words);
  return figure;
}));
for (const box of boxes) box.addEventListener("change", show);
</script>"""


def facts_of(config: Config) -> dict[str, str]:
    """Facts of a run that the overview shows, for run.json."""
    methods = {"lift": config.loss.name, "sample": config.sample.sampler, "edit": config.edit.method or ""}
    methods |= {"invert": methods["edit"]}
    return {
        "prompt": config.prompt,
        "task": config.task,
        "experiment": config.experiment,
        "method": methods.get(config.task, ""),
    }


def write_pages(config: Config, folder: Path, root: Path, code: int) -> None:
    """At the end of a run: the page of pictures that were drawn, edited or inverted (a lift has written its own), and
    the overview. A full disk is told."""
    try:
        if code == GOOD and config.task in ("sample", "edit", "invert"):
            write_report(folder, config.prompt or config.edit.source or config.task)
        if code != USER_ERROR and folder.parent.parent.resolve() == root.resolve():
            write_overview(root)
    except OSError as error:
        LOG.warning("no page of the run, or of all runs: %s", error.strerror or error)


def write_overview(root: Path) -> Path | None:
    """Write `root/index.html` of the newest 300 runs in `root/<name>/<prompt>@<time>/`; None where there is none.
    OSError when it cannot be written."""
    runs = {path.parent: STAMP.search(path.parent.name) for path in root.glob("*/*@*/run.json")}
    stamps = {folder: match[1] for folder, match in runs.items() if match is not None}
    newest = sorted(stamps, key=lambda folder: (stamps[folder], folder.name), reverse=True)[:MOST]
    if not newest:
        return None
    names = ("", "", "prompt", "figure", "task", "method", "prior", "seconds", "begun", "state")
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>runs</title><style>{STYLE}</style>",
        "<meta name='viewport' content='width=device-width'><h1>Runs</h1>",
        "<p>Tick runs to see them side by side.</p><div class='side' id='side'></div>",
        f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>",
        *(_row(root, folder) for folder in newest),
        f"</table>{_grids(root)}{COMPARE}",
    ]
    path = root / "index.html"
    write_text(path, "\n".join(parts) + "\n")
    return path


def _row(root: Path, folder: Path) -> str:
    about, figures = read_object(folder / "run.json"), read_object(folder / "metrics.json")
    prompt = str(about.get("prompt") or folder.name.rsplit("@", 1)[0].replace("_", " "))
    page = folder / "index.html"
    place = quote((page if page.exists() else folder).relative_to(root).as_posix(), safe="/@")
    found = next((files[0] for pattern in PICTURES if (files := last(folder, pattern))), None)
    picture = "" if found is None else _picture(found.relative_to(root))
    seconds = figures.get("seconds")
    words = (
        lead(figures),
        str(about.get("task") or ""),
        " ".join(str(about[key]) for key in ("experiment", "method") if about.get(key)),
        str(about.get("prior") or "").split(" ")[0],
        f"{seconds:.0f}" if isinstance(seconds, int | float) else "",
        str(about.get("started") or "")[:16].replace("T", " "),
        str(about.get("status") or ""),
    )
    cells = "".join(f'<td class="word">{html.escape(html.unescape(word))}</td>' for word in words)
    link = f'<td class="word"><a href="{place}">{html.escape(prompt)}</a></td>'
    return f'<tr><td><input type="checkbox" class="run"></td><td>{picture}</td>{link}{cells}</tr>'


def _grids(root: Path) -> str:
    """Links to the pages of grids; empty without one."""
    pages = sorted(root.glob("grid/*/index.html"))
    links = (
        f'<a href="{quote(page.relative_to(root).as_posix())}">{html.escape(page.parent.name)}</a>' for page in pages
    )
    return f"<p>grids: {', '.join(links)}</p>" if pages else ""


def _picture(place: Path) -> str:
    return f'<img src="{quote(place.as_posix(), safe="/@")}" height="72" loading="lazy" alt="">'
