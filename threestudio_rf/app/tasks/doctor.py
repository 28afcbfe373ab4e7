"""task=doctor: what is installed, which backends are used and why, whether the weights are whole, space on the disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from threestudio_rf import __version__
from threestudio_rf.app.build.scene import text_cache
from threestudio_rf.app.errors import FAILED, GOOD
from threestudio_rf.app.run.folder import PACKAGES, about, commit
from threestudio_rf.app.run.run import Run
from threestudio_rf.core.files import write_text
from threestudio_rf.priors.tiny import verify_weights, weights_folder
from threestudio_rf.scenes.hashgrid import encoding_backend
from threestudio_rf.scenes.occupancy import marching_backend

OPTIONAL = {"wandb": "wandb=true", "hydra-joblib-launcher": "sweeps side by side", "hydra-submitit-launcher": "Slurm"}
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
    """What computes."""
    yield f"device {device}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}"
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def backends(run: Run) -> Iterator[str]:
    """Which hash grid and which marching are used, and why."""
    yield encoding_backend(run.config.scene.encoding.backend, run.device)[1]
    yield marching_backend(run.config.scene.renderer.marching, run.device)[1]


def weights() -> list[str]:
    """What is wrong with the weights that ship; empty when they are whole."""
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
    lines = [*versions(), *devices(run.device), *backends(run), *whole, *places(run)]
    write_text(run.folder / "doctor.txt", "\n".join(lines) + "\n")
    for line in lines:
        print(line)
    return FAILED if faults else GOOD
