"""PIE-Bench for those who have its data: edit every picture, then the benchmark's figures as a table.

    python bench/pie.py --data <folder> --prior sd3 --path <weights> --methods flowedit,fireflow \
        [--clip <folder>] [--dino <folder>] [--lpips <folder>] [--kinds 0,6] [--limit 20] [--out outputs/pie]
    python bench/pie.py --data <folder> --score <folder of edits> ...        # edits of another program, same names

--data holds mapping_file.json and annotation_images/. Edits are written as <out>/<method>/annotation_images/<path>, the
benchmark's own names (PNG inside, whatever the suffix), and are not made again. --clip and --dino are local folders of
transformers (openai/clip-vit-large-patch14, facebook/dino-vitb8), --lpips holds squeezenet1_1*.pth and squeeze.pth;
nothing is downloaded, and figures without their folder are left out. --keep 0.2 is what task=edit does to its results;
0, the default here, is the edit as decoded. See bench/pie_metrics.py for the protocol.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from pie_metrics import SIDE, Item, Metrics, items_of, table

from threestudio_rf.app.api import load_prior
from threestudio_rf.app.build.picture import fitted, read_picture
from threestudio_rf.app.build.sampling import picture_size
from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.app.tasks.desk import Given
from threestudio_rf.app.tasks.edit import delivered
from threestudio_rf.core.random import generator
from threestudio_rf.export.media import png
from threestudio_rf.priors.base import Prior
from threestudio_rf.trainer.edit import begin

PICTURES = "annotation_images"


def edit(prior: Prior, method: str, item: Item, data: Path, *, keep: float, seed: int, device: str) -> torch.Tensor:
    """The edited picture (3, H, W) at its own size."""
    image = read_picture(data / PICTURES / item.image, "image")
    small = fitted(image, picture_size(prior, device), "image")
    settings = method_of(method, prior.name, EditConfig())
    with torch.no_grad():
        x0 = prior.encode(small.to(device))
        given = Given(item.name, image, None, small, x0, prior.decode(x0).cpu())
    editing = begin(prior, settings, source=[item.source], target=[item.target])
    *_, state = editing.edit(x0, generator=generator(seed, 0, "edit"))
    with torch.no_grad():
        return delivered(given, prior.decode(state.x).cpu(), keep)[0]


def score(metrics: Metrics, items: list[Item], data: Path, folder: Path) -> list[dict[str, float]]:
    """The figures of every edit in `folder`; those that are missing or of another size are told and left out."""
    found = []
    for item in items:
        try:
            pictures = [read_picture(root / item.image, "image") for root in (data / PICTURES, folder)]
        except UserError as error:
            print(f"{item.name} is left out: {error}", file=sys.stderr)
            continue
        if any(picture.shape != (3, SIDE, SIDE) for picture in pictures):
            sizes = ", ".join(f"{picture.shape[2]} x {picture.shape[1]}" for picture in pictures)
            print(f"{item.name} is left out: expected pictures of {SIDE} x {SIDE}, got {sizes}", file=sys.stderr)
            continue
        found.append(metrics(*pictures, item))
    return found


def made(options: argparse.Namespace, items: list[Item]) -> dict[str, Path]:
    """The folders of the edits by method; what is not there yet is made."""
    if options.score:
        return {options.score.name: options.score}
    given: dict[str, Any] = {"path": options.path} if options.path else {}
    prior = load_prior(options.prior, device=options.device, **given)
    device = "cuda" if options.device == "auto" and torch.cuda.is_available() else options.device.replace("auto", "cpu")
    folders = {}
    for method in options.methods.split(","):
        folders[method] = options.out / method / PICTURES
        for number, item in enumerate(items, 1):
            file = folders[method] / item.image
            if not file.is_file():
                png(file, edit(prior, method, item, options.data, keep=options.keep, seed=options.seed, device=device))
            print(f"{method}: {number} of {len(items)}", end="\r", file=sys.stderr)
    return folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prior", default="sd3")
    parser.add_argument("--path", default="")
    parser.add_argument("--methods", default="flowedit,drfs,fireflow,rf_inversion")
    parser.add_argument("--score", type=Path)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/pie"))
    parser.add_argument("--keep", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    for name in ("clip", "dino", "lpips"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    items = items_of(options.data, [kind for kind in options.kinds.split(",") if kind])[: options.limit or None]
    metrics = Metrics.load(clip_folder=options.clip, dino_folder=options.dino, lpips_folder=options.lpips)
    for line in metrics.missing:
        print(line)
    rows = {name: score(metrics, items, options.data, folder) for name, folder in made(options, items).items()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "figures.json").write_text(json.dumps(rows, indent=1), "utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
