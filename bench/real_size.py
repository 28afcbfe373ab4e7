"""Seconds and peak memory of priors of real size, with random weights: embedding, then one guidance gradient.

    python bench/real_size.py [--models sd15 sd21 sd3 prx sana] [--folder ~/.cache/threestudio_rf/real_size]
                              [--device auto] [--presets default low_vram] [--steps 1] [--scale real|tiny] [--together]

Folders are built once (SD 1.5 2.1 GB, SD 2.1 2.6 GB, SD3-medium without T5 6.0 GB, PRX 7.7 GB, Sana 6.7 GB, bfloat16).
Every phase is a process of its own: `build`; `embed` (text encoders alone); `guidance` (network and VAE alone, texts
from the cache): one step encodes a picture (512 x 512; PRX 256 x 256) with gradient, calls the network for both prompts
of the guidance in one batch, and goes back to the picture.
`--together` runs embed and guidance in one process, as a run of the product does.

Rows of a CPU: bfloat16, one step, preset default; peak is the largest resident size (VmHWM) within the row, with the
file pages of the weights; held is the memory that belongs to the process alone (RssAnon) at the row's end. Rows of
CUDA: presets default and low_vram, ten steps after two that do not count, medians of seconds, largest peak; both
memories are torch's allocated ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

Row = dict[str, Any]
COLUMNS = ("model", "preset", "phase", "seconds", "peak GiB", "held GiB", "note")
MARK = "row: "


def status(name: str) -> float:
    """A field of /proc/self/status in GiB; elsewhere than on Linux the process's peak so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(name + ":")) / 2**20
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


class Meter:
    """Measures parts of a phase; rows go to the parent as lines of JSON."""

    def __init__(self, device: str, **common: str) -> None:
        self.cuda, self.common = device == "cuda", common

    @contextmanager
    def part(self, phase: str) -> Iterator[Row]:
        """A row of the block: its seconds, the peak within it, what stays; the block may add a `note`."""
        import torch

        row: Row = {**self.common, "phase": phase, "note": ""}
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        started = time.perf_counter()
        yield row
        if self.cuda:
            torch.cuda.synchronize()
        row["seconds"] = time.perf_counter() - started
        row["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else status("VmHWM")
        row["held GiB"] = torch.cuda.memory_allocated() / 2**30 if self.cuda else status("RssAnon")

    @staticmethod
    def tell(*rows: Row) -> None:
        """One row of many: the median of their seconds, the largest peak."""
        seconds, peak = median(row["seconds"] for row in rows), max(row["peak GiB"] for row in rows)
        print(MARK + json.dumps(rows[-1] | {"seconds": seconds, "peak GiB": peak}), flush=True)


def place(options: argparse.Namespace) -> Path:
    """The folder of the model of this process."""
    return options.folder / (options.models[0] + ("_tiny" if options.scale == "tiny" else ""))


def prepare(options: argparse.Namespace) -> Any:
    """The prior of one folder, by the project's own settings; nothing is loaded yet."""
    import torch
    from real_size_folders import MODELS

    from threestudio_rf.app.build.scene import build_prior
    from threestudio_rf.app.settings.compose import compose, typed

    torch.set_num_threads(options.threads or torch.get_num_threads())
    folder = place(options)
    overrides = [f"prior={MODELS[options.models[0]].prior}", f"prior.path='{folder}'", "prior.dtype=bf16"]
    overrides += [f"prior.cache='{folder / 'texts'}'"]
    overrides += [] if options.presets[0] == "default" else [f"preset={options.presets[0]}"]
    return build_prior(typed(compose(overrides)).prior, torch.device(options.device))


def run_build(options: argparse.Namespace, meter: Meter) -> None:
    """Phase 0: the folder, where it is not there yet."""
    from real_size_folders import MODELS, build

    name = options.models[0]
    with meter.part("build") as row:
        counts = build(MODELS[name], place(options), options.scale)
        row["note"] = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in counts.items())
    meter.tell(row)


def run_embed(options: argparse.Namespace, meter: Meter, prior: Any) -> None:
    """Phase 1: both texts, from an empty cache; then what is left when the encoders are gone."""
    import gc

    from real_size_folders import PROMPT

    shutil.rmtree(place(options) / "texts", ignore_errors=True)
    with meter.part("embed") as row:
        condition = prior.embed([PROMPT, ""])
        row["note"] = ", ".join(f"{key} {tuple(value.shape)}" for key, value in condition.tensors.items())
    gc.collect()
    with meter.part("embed: freed") as freed:
        pass
    meter.tell(row)
    meter.tell(freed)


def run_guidance(options: argparse.Namespace, meter: Meter, prior: Any) -> None:
    """Phase 2: load, then steps. Every part of a step is measured; the first `warm` steps are left out."""
    import torch
    from real_size_folders import MODELS, PROMPT

    from threestudio_rf.core.random import generator
    from threestudio_rf.priors.base import bind

    with meter.part("guidance: load") as row:
        words = prior.embed([PROMPT, ""])
        prior.load()
    meter.tell(row)
    predict = bind(prior, {"cond": words.select([0]), "uncond": words.select([1])})
    size = options.size or MODELS[options.models[0]].size
    image = torch.rand(1, 3, size, size, generator=generator(0, 0, "bench/real_size"))
    image = image.to(options.device).requires_grad_()
    steps = [step(image, prior, predict, meter) for _ in range(options.warm + options.steps)][options.warm :]
    for rows in zip(*steps, strict=True):
        meter.tell(*rows)


def step(image: Any, prior: Any, predict: Any, meter: Meter) -> list[Row]:
    """Rows of the encoder forward, of the guidance, of the way back to the picture, and of all three."""
    import torch

    from threestudio_rf.core.random import generator
    from threestudio_rf.distill.method import METHODS, distill

    image.grad = None
    t, method = torch.full((1,), 0.5, device=image.device), METHODS["rfds" if prior.kind == "flow" else "sds"]
    settings = {"method": method}
    with meter.part("guidance: encode") as encoding:
        latents = prior.encode(image)
        encoding["note"] = f"latents {tuple(latents.shape)}"
    with meter.part("guidance: network") as guiding:
        found = distill(latents, predict, t, generator=generator(0, 0, "noise"), **settings)
        guiding["note"] = f"{prior.kind}, one call for both texts"
    with meter.part("guidance: backward") as back:
        found.loss.backward()
    norm = float(image.grad.norm())
    if found.skipped or not 0 < norm < float("inf"):
        raise SystemExit(f"got a gradient of norm {norm}, expected a finite one above 0")
    rows = [encoding, guiding, back]
    whole = {"phase": "guidance: step", "seconds": sum(row["seconds"] for row in rows), "note": ""}
    return [*rows, back | whole | {"peak GiB": max(row["peak GiB"] for row in rows)}]


def child(options: argparse.Namespace) -> None:
    """One process: its phases for one model and preset."""
    names = {"model": options.models[0], "preset": options.presets[0]}
    if options.phases == ["build"]:
        return run_build(options, Meter("cpu", **names))
    meter = Meter(options.device, **names)
    with meter.part("libraries") as row:
        from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel  # noqa: F401
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer  # noqa: F401

        prior = prepare(options)
    meter.tell(row)
    for phase in options.phases:
        {"embed": run_embed, "guidance": run_guidance}[phase](options, meter, prior)
    return None


def launch(options: argparse.Namespace, model: str, preset: str, phases: list[str]) -> list[Row]:
    """Rows of a process of its own; its other output is shown when it fails."""
    line = [sys.executable, __file__, "--models", model, "--presets", preset, "--phases", *phases]
    for name in ("folder", "device", "scale", "size", "steps", "warm", "threads"):
        line += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    rows = [json.loads(text[len(MARK) :]) for text in done.stdout.splitlines() if text.startswith(MARK)]
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
        rows.append({"model": model, "preset": preset, "phase": " ".join(phases), "note": f"exit {done.returncode}"})
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in COLUMNS]
        print("| " + " | ".join(cells) + " |", flush=True)
    return rows


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in what was left open, without importing torch into the parent."""
    if options.device == "auto":
        probe = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
        found = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip() == "True"
        options.device = "cuda" if found else "cpu"
    cuda = options.device == "cuda"
    options.presets = options.presets or (["default", "low_vram"] if cuda else ["default"])
    options.steps = options.steps or (10 if cuda else 1)
    options.warm = (2 if cuda else 0) if options.warm is None else options.warm
    options.size = options.size or (0 if options.scale == "real" else 64)
    options.folder = options.folder.expanduser().resolve()
    return options


def main() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "threestudio_rf"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=("sd15", "sd21", "sd3", "prx", "sana"), default=["sd15", "sd21", "sd3"]
    )
    parser.add_argument("--folder", type=Path, help="where folders are built (default: the user's cache)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--presets", nargs="+", choices=("default", "low_vram"))
    parser.add_argument("--scale", choices=("real", "tiny"), default="real", help="tiny: the same code on small parts")
    parser.add_argument("--size", type=int, default=0, help="pixels of the picture's side (default: its own; tiny: 64)")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--warm", type=int, help="steps before those that count")
    parser.add_argument("--threads", type=int, default=0, help="of torch (default: its own choice)")
    parser.add_argument("--together", action="store_true", help="embed and guidance in one process")
    parser.add_argument("--phases", nargs="+", choices=("build", "embed", "guidance"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder = options.folder or cache / "real_size"
    if options.phases:
        child(options)
        return
    settle(options)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    rows: list[Row] = []
    for model in options.models:
        rows += launch(options, model, "default", ["build"])
        for preset in options.presets:
            groups = [["embed", "guidance"]] if options.together else [["embed"], ["guidance"]]
            rows += [row for phases in groups for row in launch(options, model, preset, phases)]
    sys.exit(any("exit" in row["note"] for row in rows))


if __name__ == "__main__":
    main()
