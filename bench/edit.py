"""Inversion and editing on held-out pictures of the tiny world, every method on every embedded prior.

    python bench/edit.py [--images 64] [--methods all] [--priors tiny_sd3,tiny_instaflow:32,tiny_sd] [--docs docs]

Each picture has two edits whose truth is known: another colour, another shape. Reconstruction is against the picture,
beside the first stage's own, which is the bound; success is the judge's, shape and colour both right; "outside" is the
PSNR over the pixels that neither the true source nor the true target touches. "kept" is what task=edit hands out: the
picture stays where the edit changed little (`app/tasks/blend.py`); "plain" is the decoded edit. "Old outline left": how
far what is handed out is from the background along the old object's outline, where no new object is. Calls are network
calls per edit, a guided one counts 2; seconds are per picture and edit. `flowchef+mask` is given the true outlines, the
others nothing.

A prior with `:N` behind it edits N pictures. A method's result is stored in --folder under a name that its settings
decide, so a run that stops goes on. --docs writes table and contact sheet into docs/editing.md and docs/images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from threestudio_rf.app.build.sampling import picture_size
from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.report.likeness import psnr, ssim
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.app.tasks.blend import kept_edit
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import State
from threestudio_rf.edit.delta import Delta
from threestudio_rf.edit.method import METHODS, Settings, gathered
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.tiny import load_tiny, weights_folder
from threestudio_rf.tiny.world.figures.score2d import outline_left
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.pairs import EDITS, Pairs, held_out_pairs
from threestudio_rf.trainer.edit import Editing, begin

SEED, BATCH, SHOWN, KEEP = 1_000_003, 16, 6, 0.15
ROWS = (*METHODS, "flowchef+mask")
PRIORS = ("tiny_sd3", "tiny_instaflow", "tiny_sd")
BEGIN, END = "<!-- bench/edit.py: begin -->", "<!-- bench/edit.py: end -->"
Figures = dict[str, Any]


class Search(NamedTuple):
    """What the search for the noise of a batch leaves, its network calls per picture and seconds."""

    trail: list[State]
    calls: int
    seconds: float


class Edited(NamedTuple):
    """Edits and reconstructions as pictures, network calls per edit and seconds of the batch."""

    new: Tensor
    again: Tensor | None
    calls: int
    seconds: float


class Case(NamedTuple):
    """A batch of one edit, the latents of its pictures, and those decoded."""

    pairs: Pairs
    x0: Tensor
    plain: Tensor


@torch.no_grad()
def cases(prior: Any, n: int, seed: int) -> dict[str, list[Case]]:
    """The held-out edits, at the size of the prior's pictures, in batches by kind."""
    found: dict[str, list[Case]] = {}
    for kind, pairs in held_out_pairs(n, seed, size=picture_size(prior, "cpu")[0]).items():
        for first in range(0, n, BATCH):
            some = pairs.select(slice(first, first + BATCH))
            x0 = prior.encode(some.before)
            found.setdefault(kind, []).append(Case(some, x0, prior.decode(x0)))
    return found


def settings_of(row: str, prior: str) -> Settings:
    """The settings of a row: those that task=edit takes for the prior."""
    return method_of(row.partition("+")[0], prior, EditConfig())


def bound_to(prior: Any, case: Case, settings: Settings) -> Editing:
    """The prior with the prompts of a batch."""
    return begin(prior, settings, source=case.pairs.source, target=case.pairs.target)


def draws_of(case: Case, first: int) -> list[torch.Generator]:
    """The streams of a batch whose first picture is number `first`."""
    return [generator(SEED, first + i, "edit") for i in range(len(case.x0))]


def last(states: Any) -> Tensor:
    return list(states)[-1].x


def searched(prior: Any, case: Case, settings: Settings, first: int) -> Search:
    """The noise of a batch of pictures, which both of their edits go through; nothing for a method of differences."""
    if isinstance(settings, Delta):
        return Search([], 0, 0.0)
    editing, started = bound_to(prior, case, settings), time.perf_counter()
    trail: list[State] = []
    for state in editing.find_noise(case.x0, generator=draws_of(case, first)):
        gathered(trail, state, settings)
    return Search(trail, editing.calls, time.perf_counter() - started)


def edited(
    prior: Any, case: Case, settings: Settings, first: int, search: Search, *, masked: bool, rebuild: bool
) -> Edited:
    """The edit of a batch, what it cost with its search, and on request the reconstruction by the same method."""
    editing, started = bound_to(prior, case, settings), time.perf_counter()
    mask = max_pool2d((~case.pairs.outside).float(), case.plain.shape[-1] // case.x0.shape[-1]) if masked else None

    def run(*, faithful: bool) -> Tensor:
        draws = draws_of(case, first)
        if search.trail:
            return last(editing.resample(case.x0, search.trail, faithful=faithful, mask=mask, generator=draws))
        return last((editing.reconstruct if faithful else editing.edit)(case.x0, generator=draws))

    found = run(faithful=False)
    seconds, calls = time.perf_counter() - started, editing.calls
    again = run(faithful=True) if rebuild else None
    with torch.no_grad():
        pictures = prior.decode(found), None if again is None else prior.decode(again)
    return Edited(*pictures, search.calls + calls, search.seconds + seconds)


def measured(row: str, prior: Any, batches: dict[str, list[Case]], judge: Any) -> tuple[Figures, Tensor]:
    """The figures of one method on one prior, and the first edits (SHOWN, 2, 3, H, W), colour and shape."""
    settings, sums, shown = settings_of(row, prior.name), {}, []
    starts = range(0, BATCH * len(batches[EDITS[0]]), BATCH)
    searches = [searched(prior, case, settings, i) for case, i in zip(batches[EDITS[0]], starts, strict=True)]
    for kind in EDITS:
        parts: dict[str, list[Tensor]] = {}
        for case, first, search in zip(batches[kind], starts, searches, strict=True):
            given = {"masked": "+mask" in row, "rebuild": kind == EDITS[0]}
            new, again, calls, seconds = edited(prior, case, settings, first, search, **given)
            kept = kept_edit(case.pairs.before, new, case.plain, KEEP)[0].clamp(0, 1)
            rows = score(case.pairs, new, judge, "plain") | score(case.pairs, kept, judge, "kept")
            rows["outline"] = outline_left(case.pairs.before, new, kept)
            if again is not None:
                rows |= {"rec_psnr": psnr(again, case.pairs.before), "rec_ssim": ssim(again, case.pairs.before)}
            rows["seconds"] = torch.full((len(new),), seconds / len(new))
            for name, values in rows.items():
                parts.setdefault(name, []).append(values.double())
            if first == 0:
                shown.append(kept[:SHOWN])
        sums |= {
            name if "rec" in name else f"{kind}_{name}": torch.cat(x).nanmean().item() for name, x in parts.items()
        }
        sums["calls"] = calls
    return sums, torch.stack(shown, 1)


def score(pairs: Pairs, picture: Tensor, judge: Any, name: str) -> dict[str, Tensor]:
    """Judged success, PSNR outside (at most 80 dB) and against the true edit, each (B,)."""
    verdict, wanted = judge(picture), pairs.wanted
    right = (verdict.shape.argmax(-1) == wanted.shape) & (verdict.colour.argmax(-1) == wanted.colour)
    outside = psnr(picture, pairs.before, pairs.outside).clamp(max=80)
    return {f"{name}_success": right, f"{name}_outside": outside, f"{name}_truth": psnr(picture, pairs.after)}


def bound(batches: dict[str, list[Case]], judge: Any) -> Figures:
    """What the first stage alone gives, and how often the judge is right about the true edit."""
    found: Figures = {}
    for kind in EDITS:
        rows = [score(case.pairs, case.plain, judge, "plain") for case in batches[kind]]
        found[f"{kind}_outside"] = torch.cat([row["plain_outside"] for row in rows]).mean().item()
        truth = [score(case.pairs, case.pairs.after, judge, "true")["true_success"] for case in batches[kind]]
        found[f"{kind}_success"] = torch.cat(truth).double().mean().item()
    both = [(case.plain, case.pairs.before) for case in batches[EDITS[0]]]
    found["rec_psnr"] = torch.cat([psnr(*pair) for pair in both]).mean().item()
    found["rec_ssim"] = torch.cat([ssim(*pair) for pair in both]).mean().item()
    return found


def stored(folder: Path, row: str, prior: Any, n: int, work: Any) -> tuple[Figures, Tensor]:
    """`work()`, or what an earlier run with the same settings, pictures and weights stored."""
    sums = (weights_folder() / "SHA256SUMS").read_text("utf-8")
    key = repr((row, prior.name, n, SEED, KEEP, asdict(settings_of(row, prior.name)), sums))
    stem = folder / f"{prior.name}-{row}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    if stem.with_suffix(".json").is_file():
        return json.loads(stem.with_suffix(".json").read_text("utf-8")), torch.load(stem.with_suffix(".pt"))
    figures, shown = work()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save((255 * shown).round().byte(), stem.with_suffix(".pt"))
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=1), "utf-8")
    return figures, (255 * shown).round().byte()


HEAD = (
    "| method | reconstruction PSNR | SSIM | colour: success plain / kept | PSNR outside | PSNR to the truth | "
    "shape: success | PSNR outside | PSNR to the truth | old outline left, colour / shape | calls | seconds |\n"
    + "|---" * 12
    + "|"
)


def line(row: str, f: Figures) -> str:
    """One method as a row of the table."""
    cells = [row, f"{f['rec_psnr']:.2f}", f"{f['rec_ssim']:.3f}"]
    for kind in EDITS:
        for name, form in (("success", ".2f"), ("outside", ".1f"), ("truth", ".1f")):
            cells.append(" / ".join(f"{f[f'{kind}_{way}_{name}']:{form}}" for way in ("plain", "kept")))
    seconds = sum(f[f"{kind}_seconds"] for kind in EDITS) / len(EDITS)
    cells.append(" / ".join(f"{f[f'{kind}_outline']:.3f}" for kind in EDITS))
    return "| " + " | ".join([*cells, str(f["calls"]), f"{seconds:.2f}"]) + " |"


def chosen(rows: list[str], prior: str) -> str:
    """The settings behind the rows that differ from the published ones."""
    found = []
    for row in rows:
        own, used = METHODS[row.partition("+")[0]], settings_of(row, prior)
        changed = [f"{k}={v}" for k, v in asdict(used).items() if v != asdict(own)[k]]
        if changed and "+" not in row:
            found.append(f"{row} {' '.join(changed)}")
    return f"Chosen for {prior}: {'; '.join(found) or 'nothing'}; the rest as published (`paper=true`)."


def on_prior(name: str, rows: list[str], n: int, folder: Path) -> tuple[str, list[tuple[str, list[Tensor]]]]:
    """The Markdown of one prior and the rows of its contact sheet."""
    prior, judge = load_tiny(name), load_judge(weights_folder())
    batches = cases(prior, n, SEED)
    limit = bound(batches, judge)
    text = [f"### {name}, {n} pictures", "", HEAD]
    cells = [f"{limit['rec_psnr']:.2f}", f"{limit['rec_ssim']:.3f}"]
    for kind in EDITS:
        cells += [f"{limit[f'{kind}_success']:.2f} (true picture)", f"{limit[f'{kind}_outside']:.1f}", ""]
    text.append("| " + " | ".join(["*bound: first stage, judge*", *cells, "", ""]) + " |")
    sheets = [[x[:SHOWN] for x in batches[kind][0].pairs[:2]] for kind in EDITS]
    sheet = [("picture", list(sheets[0][0])), *((f"true {k}", list(s[1])) for k, s in zip(EDITS, sheets, strict=True))]
    print(f"{name}: bound " + json.dumps({key: round(value, 3) for key, value in limit.items()}), flush=True)
    for row in rows:
        try:
            figures, shown = stored(folder, row, prior, n, lambda row=row: measured(row, prior, batches, judge))
        except ValueError as error:
            text.append(f"| {row} | does not fit: {error} |" + " |" * 10)
            continue
        text.append(line(row, figures))
        print(text[-1], flush=True)
        for i, kind in enumerate(EDITS):
            sheet.append((f"{row}: {kind}", list(shown[:, i].float() / 255)))
    return "\n".join([*text, "", chosen(rows, name)]), sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--methods", default=",".join(ROWS))
    parser.add_argument("--priors", default=",".join(PRIORS))
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench_edit"))
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = list(ROWS) if options.methods == "all" else options.methods.split(",")
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"unknown methods {', '.join(unknown)}; there are {', '.join(ROWS)}")
    texts = []
    for entry in options.priors.split(","):
        name, _, images = entry.partition(":")
        try:
            text, sheet = on_prior(name, rows, int(images or options.images), options.folder)
        except PriorError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        place = options.docs / "images" if options.docs else options.folder
        png(place / f"editing_{name}.png", contact_sheet(sheet, cell=64))
        texts += [text, f"![{name}](images/editing_{name}.png)"]
    if options.docs:
        page = options.docs / "editing.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(before + BEGIN + "\n\n" + "\n\n".join(texts) + "\n\n" + END + after, "utf-8")
    else:
        print("\n\n".join(texts))


if __name__ == "__main__":
    main()
