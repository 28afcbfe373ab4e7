"""The package as somebody else installs it: settings and weights inside, run from anywhere, the same results.

Seen to fail: configs left out of the wheel, the weights of one prior left out, `python -m` without a __main__.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from threestudio_rf.app.cli.start import start

ROOT = Path(__file__).resolve().parent.parent
SHORT = [
    "trainer.steps=2",
    "trainer.log_every=1",
    "trainer.validate_every=0",
    "camera.test_views=1",
    "camera.eval_size=16",
    "trainer.progress=0",
]
SHORT += ["export.resolution=12", "evaluate.auto=false"]
COMMANDS = {
    "sample": ["task=sample", "prior=tiny_sd", "prompt=a red ball", "n=1", "steps=3"],
    "lift": ["prompt=a red ball", "prior=tiny_sd3", *SHORT],
    "edit": ["task=edit", "prior=tiny_sd", "source=a red ball", "prompt=a blue ball", "image=ball.png", "edit.steps=2"],
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and nothing else of this checkout."""
    place = tmp_path_factory.mktemp("package")
    source = place / "source"
    source.mkdir()
    for name in ("threestudio_rf", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        else:
            shutil.copy2(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place), str(source)]
    build += ["--config-settings=--build-option=--compression=stored"]  # to squeeze the weights takes seconds
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = place.glob("*.whl")
    shutil.unpack_archive(str(wheel), place / "site", "zip")
    shutil.rmtree(source)
    return place / "site"


ALL = """
import json, sys
from threestudio_rf.app.cli.start import start
for line in json.loads(sys.argv[1]):
    assert start(line) == 0, line
"""
"""Several commands in one process."""


def run(place: Path, words: list[str], folder: Path) -> str:
    """What Python says with these words when it finds the package at `place`."""
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def commands(root: Path) -> list[list[str]]:
    """Every one of `COMMANDS` with its results below a folder of its own."""
    return [[*line, f"exp_root_dir={root}/{name}"] for name, line in COMMANDS.items()]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the process that runs the wheel has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def results(folder: Path) -> dict[str, bytes]:
    """Pictures, and rows of metrics without their seconds."""
    found = {}
    for file in sorted(folder.rglob("metrics.csv")):
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file.open())]
        found["metrics"] = repr(rows).encode()
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".png" and file.name != "curves.png":
            found[f"{file.parent.name}/{file.name}"] = file.read_bytes()
    return found


def red_ball() -> Image.Image:
    """A picture to edit."""
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((14, 14, 50, 50), fill=(220, 30, 30))
    return picture


@pytest.mark.usefixtures("one_thread")
def test_the_wheel_runs_from_another_folder_with_the_results_of_the_checkout(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "prompt" in run(installed, ["-m", "threestudio_rf", "--help"], tmp_path)
    red_ball().save(tmp_path / "ball.png")
    told = run(installed, ["-c", ALL, json.dumps([["task=doctor"], *commands(tmp_path / "theirs")])], tmp_path)
    assert str(installed / "threestudio_rf" / "weights") in told and "is whole" in told
    monkeypatch.chdir(tmp_path)
    for line in commands(tmp_path / "ours"):
        assert start(line) == 0
    theirs, ours = results(tmp_path / "theirs"), results(tmp_path / "ours")
    assert {"metrics", "save/ball.png", "save/sheet.png"} <= set(theirs) and theirs == ours


def test_the_package_is_typed_and_has_its_command(installed: Path) -> None:
    assert (installed / "threestudio_rf" / "py.typed").is_file()
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "threestudio-rf = threestudio_rf.__main__:main" in entry.read_text()
