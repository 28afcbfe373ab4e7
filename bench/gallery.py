"""Text to 3D on 24 prompts, every shape of the world at least once, scored against the truth, with contact sheets.

    python bench/gallery.py [--presets tiny_exact tiny] [--root outputs/gallery] [--jobs 1] [--only "a red car" ...]
                            [--set loss.scale=3 ...] [--docs docs]

Each prompt is one `python launch.py experiment=<preset> prompt=... seed=0` with its own evaluation; a finished run is
not repeated. Prompts that the prior of the preset does not know are left out. Prints one row per run, the means and
the worst of the overlaps, for all shapes and for the twelve that every prior knows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.priors.tiny import EMBEDDED, known_words, weights_folder
from threestudio_rf.tiny.world.shapes import SHAPES, TWELVE

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "a red mushroom",
    "a purple donut",
    "an orange snowman",
    "a blue ball",
    "a green cone",
    "a yellow cylinder",
    "a blue cube",
    "a yellow table",
    "a brown chair",
    "a white house",
    "a green arrow",
    "an orange star",
    "a red car",
    "a green tree",
    "a white rocket",
    "a cyan cup",
    "a yellow lamp",
    "a blue boat",
    "a pink castle",
    "a yellow duck",
    "a white mushroom",
    "a cyan chair",
    "a red house",
    "a purple car",
)
SHOWN = ("a red mushroom", "a brown chair", "a red house", "an orange star")
SHOWN = (*SHOWN, "a red car", "a yellow duck", "a pink castle", "a blue boat")
KEYS = ("volume_iou", "silhouette_iou", "chamfer", "colour_error", "janus", "recognised", "seconds", "peak_memory_mb")
FIGURES = dict[str, float | None]
FRAMES = 12
"""Of a turn in the GIF."""


def known(preset: str) -> list[str]:
    """The prompts whose shape the prior of a preset knows."""
    name = typed(compose([f"experiment={preset}", "prompt=x"])).prior.name
    if name not in EMBEDDED:
        return list(PROMPTS)
    words = set(known_words(weights_folder() / name.replace("_", "-")))
    return [prompt for prompt in PROMPTS if prompt.split()[-1] in words]


def run(preset: str, prompt: str, options: argparse.Namespace) -> FIGURES | None:
    """The figures of one prompt, from its finished run or a new one; None when it failed."""
    tag, root = prompt.replace(" ", "_"), options.root / preset
    folder = next(iter(sorted(root.glob(f"*/{tag}@*/metrics.json"))), None)
    if folder is None:
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "launch.py"), f"experiment={preset}", f"prompt={prompt}"]
        command += [f"seed={options.seed}", f"exp_root_dir={root}", *options.set]
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})
        with (root / f"{tag}.log").open("w") as handle:
            subprocess.run(command, cwd=ROOT, env=environment, stdout=handle, stderr=subprocess.STDOUT, check=False)
        folder = next(iter(sorted(root.glob(f"*/{tag}@*/metrics.json"))), None)
    return json.loads(folder.read_text()) if folder else None


def row(name: str, figures: FIGURES | None) -> str:
    """One line of the table."""
    if figures is None:
        return f"| {name} | failed" + " |" * len(KEYS)
    cells = ["-" if figures.get(key) is None else f"{figures[key]:.3g}" for key in KEYS]
    return f"| {name} | " + " | ".join(cells) + " |"


def mean(rows: list[FIGURES | None]) -> FIGURES:
    """Means over the runs; a failed run counts as 0 in what is better when larger."""
    result: FIGURES = {}
    for key in KEYS:
        zero = key in ("volume_iou", "silhouette_iou", "recognised")
        values = [(r or {}).get(key, 0.0 if zero else None) for r in rows]
        some = [value for value in values if value is not None]
        result[key] = sum(some) / len(some) if some else None
    return result


def table(figures: dict[str, FIGURES | None]) -> list[str]:
    """The runs of one preset, their means, and the worst."""
    lines = ["| prompt | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 1) + "|"]
    lines += [row(prompt, found) for prompt, found in figures.items()]
    for title, names in (("all shapes", tuple(SHAPES)), ("the twelve", TWELVE)):
        chosen = [found for prompt, found in figures.items() if prompt.split()[-1] in names]
        if not chosen:
            continue
        lines.append(row(f"**mean, {title}**", mean(chosen)))
        worst = {key: min((r or {}).get(key) or 0.0 for r in chosen) for key in ("volume_iou", "silhouette_iou")}
        lines.append(row(f"**worst, {title}**", dict(worst)))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["tiny_exact", "tiny"])
    parser.add_argument("--root", type=Path, default=ROOT / "outputs/gallery")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="copy the contact sheets there and write gallery.md")
    parser.add_argument("--only", nargs="*", help="only these prompts")
    parser.add_argument("--set", nargs="*", default=[], help="further settings for launch.py")
    options = parser.parse_args()
    tables: dict[str, list[str]] = {}
    for preset in options.presets:
        prompts = [prompt for prompt in known(preset) if not options.only or prompt in options.only]
        with ThreadPoolExecutor(options.jobs) as pool:
            found = dict(zip(prompts, pool.map(lambda p, e=preset: run(e, p, options), prompts), strict=True))
        tables[preset] = table(found)
        print(f"\n{preset}\n" + "\n".join(tables[preset]), flush=True)
    if options.docs:
        publish(options, tables)


def publish(options: argparse.Namespace, tables: dict[str, list[str]]) -> None:
    """Tables and contact sheets as `<docs>/gallery.md`; what it has of other presets stays."""
    file = options.docs / "gallery.md"
    before = file.read_text().split("\n## ")[1:] if file.is_file() else []
    sections = {text.split("\n", 1)[0]: text.rstrip() for text in before}
    sections |= {preset: section(options, preset, lines) for preset, lines in tables.items()}
    links = [f"- [`experiment={preset}`](#{preset})" for preset in sections]
    head = [
        "# Gallery",
        "",
        "No prompt is left out. Seconds are those of each run with whatever ran beside it.",
        "",
        *links,
    ]
    file.write_text("\n".join(head) + "".join(f"\n\n## {text}" for text in sections.values()) + "\n")
    for preset in tables:
        turntables(options.root / preset, SHOWN, options.docs / f"images/turntables_{preset}.gif")


def section(options: argparse.Namespace, preset: str, lines: list[str]) -> str:
    """The part of the page about one preset, beginning with its name; its contact sheets are stored in 128 colours."""
    from PIL import Image

    given = " ".join(options.set)
    command = f"python bench/gallery.py --presets {preset} --docs docs" + f" --set {given}" * bool(given)
    text = [preset, "", f"Made by `{command}`, seed {options.seed}.", "", *lines]
    images = options.docs / "images/gallery" / preset
    images.mkdir(parents=True, exist_ok=True)
    for prompt in PROMPTS:
        tag = prompt.replace(" ", "_")
        sheets = sorted((options.root / preset).glob(f"*/{tag}@*/save/*sheet*.png"))
        if sheets:
            sheet = Image.open(sheets[-1]).convert("RGB")
            small = sheet.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            small.save(images / f"{tag}.png", optimize=True)
            text += ["", f"### {prompt}", "", f"![{prompt}](images/gallery/{preset}/{tag}.png)"]
    return "\n".join(text)


def turntables(root: Path, prompts: tuple[str, ...], file: Path, *, columns: int = 4) -> None:
    """The turntables of those prompts that were run, side by side, as one GIF of `FRAMES` frames."""
    from PIL import Image

    found = [sorted(root.glob(f"*/{p.replace(' ', '_')}@*/save/it*-test")) for p in prompts]
    turns = [sorted(folders[-1].glob("*.png"), key=lambda path: int(path.stem)) for folders in found if folders]
    frames = []
    for i in range(FRAMES):
        pictures = [Image.open(turn[len(turn) * i // FRAMES]).resize((128, 128)) for turn in turns]
        sheet = Image.new("RGB", (columns * 128, -(-len(pictures) // columns) * 128))
        for number, picture in enumerate(pictures):
            sheet.paste(picture, (number % columns * 128, number // columns * 128))
        frames.append(sheet)
    if turns:
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=120, loop=0)


if __name__ == "__main__":
    main()
