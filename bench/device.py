"""Parts of bench/device.sh: rows of Markdown, each measured on one device. `python bench/device.py PART [--small]`.

    versions   what computes
    grid       hash grid, forward and backward, every backend that works, against torch
    march      marching and compositing with gradient, every backend that works, against torch
    lift       the step of the default preset, and of the same object at 256 and 512 pixels, with its peak memory
    rfds       a step of text-to-3D by a prior of real size with random weights: --model, --size, --preset

`--small` makes everything so small that a CPU shows whether the part works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.app.build.method import build_optimiser, lift_settings
from threestudio_rf.app.build.scene import build_prior, build_scene
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.scenes.camera import sphere_views
from threestudio_rf.scenes.hashgrid import encoding_backend, make_encoding
from threestudio_rf.scenes.occupancy import MARCHES, OccupancyGrid, marching_backend
from threestudio_rf.scenes.volume import composite, packed_weights
from threestudio_rf.trainer.lift import lift

ENOUGH = 25.0
"""Seconds."""


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Median wall time of a call, after three that do not count."""
    times = []
    for number in range(repeats + 3):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times += [1e3 * (time.perf_counter() - started)] if number >= 3 else []
    return statistics.median(times)


def row(figure: str, value: str, note: str = "") -> None:
    print(f"| {figure} | {value} | {note} |", flush=True)


def versions(options: argparse.Namespace, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    row("device", name, f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}")
    for tell in (encoding_backend("auto", device), marching_backend("auto", device)):
        row("chosen", tell[0], tell[1])


def grid(options: argparse.Namespace, device: torch.device) -> None:
    count, log2_table = (1000, 12) if options.small else (2**20, 19)
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).to(device)
    direction = torch.randn(count, 32, generator=torch.Generator().manual_seed(1)).to(device)
    before: dict[str, float] = {}
    for backend, half in (("torch", False), ("triton", False), ("triton", True), ("tinycudann", True)):
        found, reason = encoding_backend(backend, device, "tcnn")
        if found != backend:
            row(f"hash grid, {backend}", "not measured", reason)
            continue
        encoding, _ = make_encoding(backend, log2_table=log2_table, geometry="tcnn", half=half, device=device)
        out = encoding(points)
        given = direction.to(out.dtype)
        times = {
            "forward": milliseconds(lambda encoding=encoding: encoding(points), device),
            "backward": milliseconds(
                lambda out=out, given=given, encoding=encoding: torch.autograd.grad(
                    out, encoding.table, given, retain_graph=True
                ),
                device,
            ),
        }
        for way, value in times.items():
            before.setdefault(way, value)
            kind = f"{backend}, {'half' if half else 'single'} table, {way}"
            row(
                f"hash grid, {kind}", f"{value:.3f} ms", f"{value / before[way]:.3g} of torch's, {count} points, 16 x 2"
            )


def march(options: argparse.Namespace, device: torch.device) -> None:
    size, slots = (8, 16) if options.small else (512, 512)
    cells = OccupancyGrid(resolution=32, radius=1.0, step=2 * 3**0.5 / slots, threshold=0.01).to(device)

    def ball(points: Tensor) -> Tensor:
        return 20.0 * (points.norm(dim=-1) < 0.5)

    for seed in range(3):
        cells.update(ball, torch.Generator().manual_seed(seed))
    origins, directions = (x.reshape(-1, 3).to(device) for x in sphere_views(1, height=size, width=size).rays())
    first = 0.0
    for backend in ("torch", "triton", "nerfacc"):
        found, reason = marching_backend(backend, device)
        if found != backend:
            row(f"marching, {backend}", "not measured", reason)
            continue

        def whole(backend: str = backend) -> Tensor:
            samples = MARCHES[backend](origins, directions, cells, slots=slots)
            density = ball(samples.points).requires_grad_()
            rgb = samples.points.sigmoid().requires_grad_()
            colour = composite(packed_weights(density, samples), rgb, samples)[0]
            colour.sum().backward()
            return colour.detach()

        value = milliseconds(whole, device, repeats=10)
        first = first or value
        picture = f"mean colour {float(whole().mean()):.5f}"
        row(
            f"march and composite, {backend}",
            f"{value:.2f} ms",
            f"{value / first:.2f} of torch's, {size} px, {picture}",
        )


def steps(overrides: list[str], figure: str, device: torch.device, *, warm: int, count: int) -> None:
    """Seconds of a step of lift and the largest memory; fewer steps where they take longer than `ENOUGH`."""
    config = typed(compose(["prompt='a red mushroom'", *overrides]))
    prior, scene = build_prior(config.prior, device), build_scene(config.scene, config.seed, device)
    conditions, negative = embed_views(config, prior)
    optimiser = build_optimiser(config, scene)
    settings = lift_settings(config)
    run = lift(scene, prior, conditions, negative=negative, optimiser=optimiser, settings=settings, device=device)
    times: list[float] = []
    begun = time.perf_counter()
    for number in range(warm + count):
        if len(times) > 2 and time.perf_counter() - begun > ENOUGH:
            break
        if number == warm and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        wait(device)
        started = time.perf_counter()
        state = next(run)
        wait(device)
        times += [time.perf_counter() - started] if number >= warm else []
    median = statistics.median(times)
    peak = f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB" if device.type == "cuda" else "not measured"
    note = f"{1 / median:.2f} steps a second, opacity {state.metrics['opacity']:.2f}, {scene.remark()}"
    row(f"{figure}: seconds a step; peak memory", f"{median:.4f}; {peak}", note)


def lift_steps(options: argparse.Namespace, device: torch.device) -> None:
    for size in (16,) if options.small else (64, 256, 512):
        views = ["camera.milestones=[]", "camera.views=[2]", f"camera.sizes=[{size}]"]
        warm, count = (1, 2) if options.small else (30, 30)
        steps(views, f"lift, default preset, {size} px", device, warm=warm, count=count)


def rfds(options: argparse.Namespace, device: torch.device) -> None:
    from real_size_folders import MODELS, build

    scale, model = "tiny" if options.small else "real", MODELS[options.model]
    folder = options.folder / (options.model + ("_tiny" if options.small else ""))
    build(model, folder, scale)
    experiment = "rfds_rev_sd3" if options.model == "sd3" else "dreamfusion_sd"
    size = 64 if options.small else options.size
    views = ["camera.views=[1]", "camera.milestones=[]", f"camera.sizes=[{size}]"]
    overrides = [
        f"experiment={experiment}",
        f"prior.path='{folder}'",
        f"prior.cache='{folder / 'texts'}'",
        "prior.t5=false",
    ]
    overrides += [f"prior.image_size={64 if options.small else 512}", *views]
    overrides += [] if options.preset == "default" else [f"preset={options.preset}", *views]
    overrides += ["scene.renderer.samples_per_ray=16", "scene.encoding.log2_table=12"] if options.small else []
    warm, count = (1, 1) if options.small else (5, 10)
    name = f"{experiment}, {options.model} with random weights, {size} px, {options.preset}"
    steps(overrides, name, device, warm=warm, count=count)


PARTS = {"versions": versions, "grid": grid, "march": march, "lift": lift_steps, "rfds": rfds}


def options_of() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=("sd15", "sd3"), default="sd15")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--preset", choices=("default", "low_vram"), default="default")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "threestudio_rf_real_size",
        help="for random weights",
    )
    parser.add_argument("--small", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = options_of()
    PARTS[options.part](options, torch.device(options.device))


if __name__ == "__main__":
    main()
