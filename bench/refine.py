"""The second stage on the twelve shapes that every prior knows: the field's figures against those of its mesh.

    python bench/refine.py [--experiment tiny_exact] [--fields outputs/gallery/tiny] [--only "a red mushroom" ...]
                           [--root outputs/refine] [--jobs 2] [--limit 240] [--sheet pictures.png]
                           [--set optim.lr_geometry=0.01 ...]

Every prompt is a field, `experiment=<experiment>`, or a finished run found in `--fields`, and then its mesh,
`preset=<refine_with of that experiment> init=<field>`, both with their own evaluation and one thread each. Finished
runs are not repeated, and after `--limit` seconds none is begun: the same line goes on. Overlaps of outlines and
volumes, chamfer distances, errors of colour, each before and after; seconds are those of the second stage's loop.
`--sheet` has the first view of each field above that of its mesh.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gallery import FIGURES, PROMPTS, ROOT
from PIL import Image

from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.tiny.world.shapes import TWELVE

CHOSEN = tuple(next(prompt for prompt in PROMPTS if prompt.endswith(shape)) for shape in TWELVE)
SHORT = ("camera.test_views=1", "camera.video_scale=1", "trainer.progress=0", "trainer.validate_every=0")
SHORT = (*SHORT, "export.texture=none", "export.formats=[ply]")
PAIRS = ("silhouette_iou", "volume_iou", "chamfer", "colour_error")


def finished(root: Path, prompt: str) -> Path | None:
    """The folder of the evaluated run of a prompt below `root`."""
    found = sorted(root.glob(f"*/{prompt.replace(' ', '_')}@*/metrics.json"))
    return found[-1].parent if found else None


def made(root: Path, prompt: str, line: list[str], deadline: float) -> Path | None:
    """The finished run of a prompt, a new one by the settings `line` if there is none; None after `deadline`, or when
    it failed."""
    folder = finished(root, prompt)
    if folder is not None or time.monotonic() > deadline:
        return folder
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "launch.py"), *line, f"prompt={prompt}", "seed=0", f"exp_root_dir={root}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (root / f"{prompt.replace(' ', '_')}.log").open("w") as handle:
        subprocess.run(command, cwd=ROOT, env=environment, stdout=handle, stderr=subprocess.STDOUT, check=False)
    return finished(root, prompt)


def both(prompt: str, options: argparse.Namespace, deadline: float) -> tuple[Path, Path] | None:
    """The run of the field and that of its mesh; None where one is missing."""
    experiment, root = f"experiment={options.experiment}", options.root / options.experiment
    field = made(options.fields or root / "fields", prompt, [experiment, *SHORT], deadline)
    if field is None:
        return None
    preset = typed(compose([experiment])).refine_with
    line = [experiment, f"preset={preset}", f"init={field}", *SHORT, *options.set]
    mesh = made(root / options.name, prompt, line, deadline)
    return mesh and (field, mesh)


def read(folder: Path) -> FIGURES:
    """The figures of a finished run."""
    figures: FIGURES = json.loads((folder / "metrics.json").read_text())
    return figures


def sheet(pairs: list[tuple[Path, Path]], path: Path, size: int = 160) -> None:
    """The first picture of every turntable, fields above meshes."""
    picture = Image.new("RGB", (size * len(pairs), 2 * size))
    for column, pair in enumerate(pairs):
        for row, folder in enumerate(pair):
            view = Image.open(next(folder.glob("save/it*-test/0.png"))).convert("RGB")
            picture.paste(view.resize((size, size)), (column * size, row * size))
    picture.save(path)


def table(found: dict[str, tuple[FIGURES, FIGURES] | None]) -> list[str]:
    """One line per prompt, the means, and what is worst."""
    lines = [f"| prompt | {' | '.join(f'{key}: field | mesh' for key in PAIRS)} | chamfer % | seconds |"]
    lines.append("|---" + "|--:" * (2 * len(PAIRS) + 2) + "|")
    done = {prompt: pair for prompt, pair in found.items() if pair is not None}
    for prompt, (field, mesh) in done.items():
        cells = [f"{figures[key]:.3g}" for key in PAIRS for figures in (field, mesh)]
        lines.append(f"| {prompt} | {' | '.join(cells)} | {change(field, mesh):+.0f} | {mesh['seconds']:.0f} |")
    if done:
        pairs = list(done.values())
        means = [sum(pair[k][key] or 0 for pair in pairs) / len(pairs) for key in PAIRS for k in (0, 1)]
        less = sum(change(*pair) for pair in pairs) / len(pairs)
        longest = max(mesh["seconds"] or 0 for _, mesh in pairs)
        mean = " | ".join(f"{x:.3g}" for x in means)
        lines.append(f"| **mean; longest** | {mean} | {less:+.0f} | {longest:.0f} |")
        lower = [prompt for prompt, (a, b) in done.items() if b["silhouette_iou"] < a["silhouette_iou"]]
        lines += ["", f"{len(done)} of {len(found)} prompts; outline IoU lower for: {', '.join(lower) or 'none'}"]
    return lines


def change(field: FIGURES, mesh: FIGURES) -> float:
    """By how much the chamfer distance of the mesh is larger, in per cent of the field's."""
    before, after = field["chamfer"], mesh["chamfer"]
    return float("nan") if not before or after is None else 100 * (after / before - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", default="tiny_exact")
    parser.add_argument("--fields", type=Path, help="folder of finished runs of that experiment")
    parser.add_argument("--root", type=Path, default=ROOT / "outputs/refine")
    parser.add_argument("--name", default="meshes", help="folder of the second stages, one per choice of --set")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no run is begun")
    parser.add_argument("--sheet", type=Path, help="a file for one picture of all")
    parser.add_argument("--only", nargs="*", help="only these prompts")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of the second stage")
    options = parser.parse_args()
    deadline = time.monotonic() + options.limit
    prompts = options.only or CHOSEN
    with ThreadPoolExecutor(options.jobs) as pool:
        found = dict(zip(prompts, pool.map(lambda prompt: both(prompt, options, deadline), prompts), strict=True))
    print("\n".join(table({prompt: pair and (read(pair[0]), read(pair[1])) for prompt, pair in found.items()})))
    if options.sheet:
        sheet([pair for pair in found.values() if pair], options.sheet)


if __name__ == "__main__":
    main()
