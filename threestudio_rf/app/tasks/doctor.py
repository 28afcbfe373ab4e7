"""task=doctor: what is installed, which backends are used and why, whether the weights are whole, space on the disk."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from threestudio_rf.app.build.prior import facts_of, pick_dtype, text_cache
from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.errors import FAILED, GOOD
from threestudio_rf.app.run.folder import PACKAGES, about, commit
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config
from threestudio_rf.core.files import write_text
from threestudio_rf.priors.tiny import verify_weights, weights_folder
from threestudio_rf.scenes.hashgrid import encoding_backend
from threestudio_rf.scenes.nerf import AT_ONCE, CHUNK, SAMPLE_BYTES
from threestudio_rf.scenes.occupancy import marching_backend
from threestudio_rf.version import __version__

OPTIONAL = {"wandb": "wandb=true", "viser": "viewer=true", "hydra-joblib-launcher": "sweeps side by side"}
OPTIONAL |= {"hydra-submitit-launcher": "Slurm"}
"""Packages that are used where they are there, and what for."""


def _installed(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> Iterator[str]:
    """Program, Python, libraries, and the line that installs what is missing."""
    yield f"threestudio_rf {__version__}, commit {commit() or 'unknown'}"
    yield f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors"
    for name in PACKAGES:
        yield f"{name} {_installed(name) or 'MISSING'}"
    for name, use in OPTIONAL.items():
        if _installed(name) is None:
            yield f"optional, not installed: {name}, for {use} (pip install {name})"


def devices(device: torch.device) -> Iterator[str]:
    """The device, threads and GPUs."""
    yield f"device {device}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def backends(run: Run) -> Iterator[str]:
    """Which hash grid and which marching are used, and why."""
    grid = run.config.scene.encoding
    yield encoding_backend(grid.backend, run.device, grid.geometry, features=grid.features, half=grid.half)[1]
    yield marching_backend(run.config.scene.renderer.marching, run.device)[1]


GIB = 2**30
NAMED = {"3.5-medium": 2.5e9, "3.5-large": 8.1e9, "1600M": 1.6e9, "9B": 9.08e9, "9b": 9.08e9}
"""Parameters of the network of larger releases, by a part of their names."""
FULL = 0.25
PROGRAM = 0.45
"""What Python and its libraries take on a CPU."""


def needed(config: Config, device: torch.device) -> dict[str, float]:
    """GiB that a step of training takes by arithmetic, by part: weights of network and VAE, what the VAE's encoder
    keeps for one gradient, the renderer's samples if a `FULL` share of them is not empty, and the scene with its
    optimiser. A twin's step and what the network needs for a moment are left out."""
    parts = {"CUDA": 0.5} if device.type == "cuda" else {"program": PROGRAM}
    parts |= of_prior(config, device)
    if "scene.renderer." not in SCENES[config.scene.name].reads:
        return parts
    render, grid = config.scene.renderer, config.scene.encoding
    rays = min(max(views * size**2 for views, size in _stages(config)), render.ray_chunk or CHUNK)
    loss = config.loss
    normals = bool(loss.lambda_orient or loss.lambda_convex) or config.scene.shading.start is not None
    densities = 7 if normals else 1
    rows = min(2**grid.log2_table, (grid.base * grid.growth ** (grid.levels - 1)) ** 3) * grid.levels * grid.features
    most = AT_ONCE if device.type == "cuda" and not render.ray_chunk else math.inf
    parts["renderer"] = min(FULL * rays * render.samples_per_ray * SAMPLE_BYTES * densities, most) / GIB
    parts["scene"] = 5 * 4 * rows / GIB
    return parts


def _stages(config: Config) -> list[tuple[int, int]]:
    """How many views of which size each stage has."""
    camera = config.camera
    stages = range(max(len(camera.sizes), len(camera.views)))
    views, sizes = ([given[min(i, len(given) - 1)] for i in stages] for given in (camera.views, camera.sizes))
    return list(zip(views, sizes, strict=True))


def of_prior(config: Config, device: torch.device) -> dict[str, float]:
    """GiB of a prior of the hub in a step, by part; of network and VAE only the larger with `prior.offload`."""
    prior, facts = config.prior, facts_of(config.prior)
    if facts.source != "hub":
        return {}
    number = torch.empty((), dtype=pick_dtype(prior, device)).element_size()
    kept = {"none": number, "fp8": 1, "int8": 1, "nf4": 0.5}
    byte = min(kept.get(prior.storage, number), kept.get(prior.quantization, number))
    network, vae = {"network": parameters_of_network(config) * byte / GIB}, dict[str, float]()
    if facts.billions.vae and not prior.vae:
        pixels = max(views * (prior.image_size or size) ** 2 for views, size in _stages(config))
        full, smaller = facts.encoder
        numbers = full if prior.vae_checkpointing else full + smaller
        vae = {"VAE": 1e9 * facts.billions.vae * number / GIB, "encoder": pixels * numbers * number / GIB}
    if prior.offload and vae:
        return max(network, vae, key=lambda side: sum(side.values()))
    return network | vae


def embedding(config: Config, device: torch.device) -> float:
    """GiB of the text encoders, which are in memory alone, before the network; 0 where they are not known."""
    prior, billions = config.prior, facts_of(config.prior).billions
    number = torch.empty((), dtype=pick_dtype(prior, device)).element_size()
    texts = billions.texts if prior.t5 else billions.without_t5 or billions.texts
    return (_counted(prior.path, "text_encoder*") or 1e9 * texts) * number / GIB


def parameters_of_network(config: Config) -> float:
    """Of a folder by the size of its files and the format of the first tensor; of the hub as published."""
    path = config.prior.path
    named = [count for name, count in NAMED.items() if name in path]
    published = named[0] if named else 1e9 * facts_of(config.prior).billions.network
    return _counted(path, "transformer") or _counted(path, "unet") or published


def _counted(path: str, part: str) -> float:
    """The numbers in the weights of those parts of a folder; 0 where there are none."""
    found = sorted(Path(path).expanduser().glob(f"{part}/*.safetensors")) if path else []
    files = [file for file in found if file.is_file()]
    if not files:
        return 0
    with safe_open(files[0], "pt") as opened:
        first = opened.get_tensor(next(iter(opened.keys())))
    return sum(file.stat().st_size for file in files) / int(first.element_size())


def fits(config: Config, device: torch.device) -> tuple[str, bool]:
    """Estimated memory of a step of training beside what is free, in one line; and whether it fits."""
    parts = needed(config, device)
    total, sure = sum(parts.values()), sum(value for name, value in parts.items() if name != "renderer")
    texts = embedding(config, device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    listed = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    before = f"; its texts take {texts:.1f} before" if texts else ""
    line = f"memory of a training step, estimated: {total:.1f} GiB ({listed}){before}; {free / GIB:.1f} GiB are free"
    if max(sure, texts) > free / GIB:
        return (
            line + ": it DOES NOT FIT; preset=low_vram, prior.storage=fp8, prior.offload and offload_blocks need less",
            False,
        )
    if total > free / GIB:
        return line + ": the renderer will have to take smaller chunks (scene.renderer.ray_chunk)", False
    return line, True


SECONDS = (18.0, 7e-9)
"""Of a guidance gradient of one picture of 512 pixels on two cores in bf16: at least, and for each parameter of the
network (SD 1.5, 2.1 and SD3-medium, docs/benchmarks.md)."""


def duration(config: Config, device: torch.device) -> str:
    """Estimated time of training with a prior of a folder on a CPU, in one line; "" on a GPU and for others."""
    if device.type != "cpu" or facts_of(config.prior).source != "hub":
        return ""
    steps, camera, least = config.trainer.steps, config.camera, SECONDS[0]
    stages = _stages(config)
    ends = [*(min(end, steps) for end in camera.milestones[: len(stages) - 1]), steps]
    lasts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    views, sizes = [views for views, _ in stages], [config.prior.image_size or size for _, size in stages]
    if not SCENES[config.scene.name].posed:
        lasts, views, sizes = [steps], [config.scene.image.per_step or config.scene.image.particles], [512]
    pictures = sum(last * many * (size / 512) ** 2 for last, many, size in zip(lasts, views, sizes, strict=False))
    hours = pictures * (least + SECONDS[1] * parameters_of_network(config)) / 3600
    took = f"{hours / 24:.1f} days" if hours > 24 else f"{hours:.1f} hours"
    memory = sum(needed(config, device).values())
    return (
        f"{steps} steps with {config.prior.name} on a CPU take about {took} on two cores and {memory:.0f} GiB of "
        f"memory, estimated; a GPU needs less time, and experiment=tiny is made for a CPU"
    )


def weights() -> list[str]:
    """Faults of the shipped weights; empty when they are whole."""
    return verify_weights()


def places(run: Run) -> Iterator[str]:
    """Folders and the space they have."""
    cache = text_cache(run.config.prior.cache)
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for name, folder in (("texts", cache), ("hub", hub), ("results", run.folder)):
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        yield f"{name}: {folder} ({'there' if folder.exists() else 'not yet made'}), {free:.1f} GB free"
    shown = about("")["environment"]
    yield "environment: " + (", ".join(f"{name}={value}" for name, value in shown.items()) or "nothing set")


def command(run: Run) -> int:
    """Prints everything and keeps it as doctor.txt; exit code 1 when the shipped weights are not whole."""
    faults = weights()
    whole = [f"weights: {fault}" for fault in faults] or [f"weights: {weights_folder()} is whole"]
    needs = [fits(run.config, run.device)[0], *filter(None, [duration(run.config, run.device)])]
    lines = [*versions(), *devices(run.device), *backends(run), *needs, *whole, *places(run)]
    write_text(run.folder / "doctor.txt", "\n".join(lines) + "\n")
    for line in lines:
        print(line)
    return FAILED if faults else GOOD
