"""Text to 3D on sixteen prompts with the default preset, scored against the true shapes, with contact sheets.

    python bench/gallery.py [--root outputs/gallery] [--jobs 1] [--set loss=rfds ...] [--docs docs]

Each prompt is one `python launch.py prompt=... seed=0` with its own evaluation; a finished run is not repeated. Prints
one row per run and the means of both halves: surfaces of revolution and other shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REVOLUTION = (
    "a red mushroom",
    "a purple donut",
    "an orange snowman",
    "a blue ball",
    "a green cone",
    "a yellow cylinder",
    "a white mushroom",
    "a pink snowman",
)
OTHERS = (
    "a blue cube",
    "a yellow table",
    "a brown chair",
    "a white house",
    "a green arrow",
    "an orange star",
    "a cyan chair",
    "a red house",
)
SHOWN = ("a red mushroom", "a purple donut", "an orange snowman", "a green cone")
SHOWN = (*SHOWN, "a blue cube", "a white house", "an orange star", "a green arrow")
KEYS = ("volume_iou", "silhouette_iou", "chamfer", "colour_error", "janus", "recognised", "seconds", "peak_memory_mb")


def run(prompt: str, options: argparse.Namespace) -> dict[str, float | None] | None:
    """The figures of one prompt, from its finished run or a new one; None when it failed."""
    tag = prompt.replace(" ", "_")
    folder = next(iter(sorted(options.root.glob(f"*/{tag}*/metrics.json"))), None)
    if folder is None:
        command = [sys.executable, str(ROOT / "launch.py"), f"prompt={prompt}", f"seed={options.seed}"]
        command += [f"exp_root_dir={options.root}", *options.set]
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})
        log = options.root / f"{tag}.log"
        with log.open("w") as handle:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=handle, stderr=subprocess.STDOUT, check=False)
        folder = next(iter(sorted(options.root.glob(f"*/{tag}*/metrics.json"))), None)
    return json.loads(folder.read_text()) if folder else None


def row(name: str, figures: dict[str, float | None] | None) -> str:
    """One line of the table."""
    if figures is None:
        return f"| {name} | failed" + " |" * len(KEYS)
    cells = ["-" if figures.get(key) is None else f"{figures[key]:.3g}" for key in KEYS]
    return f"| {name} | " + " | ".join(cells) + " |"


def mean(rows: list[dict[str, float | None] | None]) -> dict[str, float | None]:
    """Means over the runs; a failed run counts as 0 in accuracy and IoU."""
    result: dict[str, float | None] = {}
    for key in KEYS:
        zero = key in ("volume_iou", "silhouette_iou", "recognised")
        values = [(r or {}).get(key, 0.0 if zero else None) for r in rows]
        known = [value for value in values if value is not None]
        result[key] = sum(known) / len(known) if known else None
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT / "outputs/gallery")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="copy the contact sheets there and write gallery.md")
    parser.add_argument("--only", nargs="*", help="only these prompts")
    parser.add_argument("--set", nargs="*", default=[], help="further settings for launch.py")
    options = parser.parse_args()
    options.root.mkdir(parents=True, exist_ok=True)
    prompts = [p for p in (*REVOLUTION, *OTHERS) if not options.only or p in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        figures = dict(zip(prompts, pool.map(lambda prompt: run(prompt, options), prompts), strict=True))
    lines = ["| prompt | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 1) + "|"]
    for title, group in (("surfaces of revolution", REVOLUTION), ("other shapes", OTHERS)):
        chosen = [p for p in group if p in figures]
        lines += [row(p, figures[p]) for p in chosen]
        if chosen:
            lines.append(row(f"**mean, {title}**", mean([figures[p] for p in chosen])))
    print("\n".join(lines))
    if options.docs:
        publish(options, prompts, lines)


def publish(options: argparse.Namespace, prompts: list[str], lines: list[str]) -> None:
    """Contact sheets and table as `<docs>/gallery.md`."""
    images = options.docs / "images/gallery"
    images.mkdir(parents=True, exist_ok=True)
    text = ["# Gallery", "", "Made by `python bench/gallery.py --docs docs`, seed 0, the default preset.", ""]
    text += [*lines, ""]
    for prompt in prompts:
        tag = prompt.replace(" ", "_")
        sheets = sorted(options.root.glob(f"*/{tag}*/save/*sheet*.png"))
        if sheets:
            shutil.copy2(sheets[-1], images / f"{tag}.png")
            text += [f"## {prompt}", "", f"![{prompt}](images/gallery/{tag}.png)", ""]
    (options.docs / "gallery.md").write_text("\n".join(text))
    turntables(options, [p for p in SHOWN if p in prompts], options.docs / "images/turntables.gif")


def turntables(options: argparse.Namespace, prompts: list[str], file: Path, *, columns: int = 4) -> None:
    """Every sixth frame of the turntables of some prompts, side by side, as one GIF."""
    from PIL import Image

    folders = [sorted(options.root.glob(f"*/{p.replace(' ', '_')}*/save/it*-test"))[-1] for p in prompts]
    frames = []
    for i in range(0, 120, 6):
        pictures = [Image.open(folder / f"{i}.png") for folder in folders]
        width, height = pictures[0].size
        sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number % columns * width, number // columns * height))
        frames.append(sheet)
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=120, loop=0)


if __name__ == "__main__":
    main()
