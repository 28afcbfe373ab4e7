"""Small runs in this process: the closed-form prior, a few steps, pictures of 16 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from threestudio_rf.app.cli.start import start

SMALL = [
    "prior=gaussian",
    "camera.sizes=[16]",
    "camera.views=[2]",
    "loss.t_law=uniform",
    "camera.eval_size=16",
    "camera.test_views=2",
    "camera.validation_views=1",
    "scene.renderer.samples_per_ray=16",
    "scene.renderer.occupancy_resolution=8",
    "scene.encoding.log2_table=8",
    "scene.encoding.levels=2",
    "export.resolution=12",
    "trainer.steps=6",
    "trainer.validate_every=4",
    "trainer.log_every=2",
    "trainer.progress=0",
    "checkpoint.every=2",
]
Launcher = Callable[..., tuple[int, Path | None, str, str]]


@pytest.fixture
def small() -> list[str]:
    """The overrides of a small run."""
    return list(SMALL)


@pytest.fixture
def launcher(capfd) -> Launcher:
    """Runs a command line; exit code, run folder of the last line of stdout, stdout, stderr."""

    def launch(*line: str) -> tuple[int, Path | None, str, str]:
        capfd.readouterr()
        code = start(list(line))
        out, err = capfd.readouterr()
        last = out.strip().splitlines()[-1] if out.strip() else ""
        return code, Path(last[5:]) if last.startswith("run: ") else None, out, err

    return launch


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of one finished run; tests copy it before they change it."""
    root = tmp_path_factory.mktemp("finished")
    assert start([*SMALL, "prompt=a red ball", f"exp_root_dir={root}"]) == 0
    (folder,) = (root / "tiny").iterdir()
    return folder
