"""The mesh of a run by the settings of `export`, and what happens where a package is missing.

Mutations seen to fail: `export.texture` read as auto, the settings up and scale not passed on, a missing package as an
error, `UNWRAPPED` ignored.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trimesh
from PIL import Image

from threestudio_rf.app.tasks.output import asset
from threestudio_rf.export import unwrap

Launcher = Callable[..., tuple[int, Path | None, str, str]]


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run without its mesh."""
    copy = tmp_path / "tiny" / finished.name
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "save" / "it6-export")
    return copy


def launch(run: Path, launcher: Launcher, *line: str) -> tuple[int, str]:
    """Exit code and log of another export of the run."""
    code, _, out, err = launcher("task=export", f"resume={run}", f"exp_root_dir={run.parents[1]}", *line)
    return code, out + err


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "save" / "it6-export").iterdir())


def test_a_mesh_has_a_texture_of_the_size_that_was_asked_for(again: Path, launcher: Launcher):
    code, _ = launch(again, launcher, "export.texture=128", "export.formats=[obj,stl]")
    assert code == 0 and names(again) == ["model.mtl", "model.obj", "model.png", "model.stl"]
    assert Image.open(again / "save/it6-export/model.png").size == (128, 128)


def test_settings_reach_the_files(again: Path, launcher: Launcher):
    line = ["export.texture=none", "export.formats=[obj]", "export.up=z", "export.scale=scene", "export.faces=100"]
    code, _ = launch(again, launcher, *line)
    first = trimesh.load(again / "save/it6-export/model.obj", process=False)
    assert code == 0 and names(again) == ["model.obj"] and len(first.faces) <= 100
    assert abs(first.extents.max() - 1) > 0.02
    assert launch(again, launcher, *line[:2], "export.scale=scene")[0] == 0
    second = trimesh.load(again / "save/it6-export/model.obj", process=False)
    assert abs(second.bounds[:, [2, 0, 1]] - first.bounds).max() < 0.1 and len(second.faces) > 100


@pytest.mark.parametrize(
    "package, line",
    [
        ("xatlas", "pip install xatlas; colours are at the vertices, without a texture"),
        ("fast_simplification", "pip install fast_simplification; the mesh keeps all its triangles"),
    ],
)
def test_a_missing_package_is_one_line_and_the_mesh_still_comes(
    again: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, package: str, line: str
):
    monkeypatch.setitem(sys.modules, package, None)
    code, err = launch(again, launcher, "export.faces=100")
    assert code == 0 and err.count(line) == 1
    assert ("model.png" in names(again)) == (package != "xatlas")


def test_where_xatlas_gives_up_the_mesh_still_comes(
    again: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    script = tmp_path / "gives_up.py"
    script.write_text("import sys; sys.exit('too knotted a mesh')")
    monkeypatch.setattr(unwrap, "__file__", str(script))
    code, err = launch(again, launcher)
    assert code == 0 and "no texture, colours are at the vertices: xatlas: too knotted a mesh" in err
    assert {"model.glb", "model.obj"} <= set(names(again)) and "model.png" not in names(again)


def test_a_mesh_of_very_many_triangles_gets_a_texture_only_when_asked(
    again: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asset, "UNWRAPPED", 100)
    code, err = launch(again, launcher, "export.faces=0")
    assert code == 0 and "export.texture=1024 makes one all the same" in err and "model.png" not in names(again)
    assert launch(again, launcher, "export.faces=0", "export.texture=64")[0] == 0
    assert "model.png" in names(again)


def test_a_field_without_a_surface_says_so_and_writes_nothing(
    again: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
):
    from threestudio_rf.scenes.field import HashGridField

    monkeypatch.setattr(HashGridField, "density", lambda self, points: points.new_zeros(len(points)))
    code, err = launch(again, launcher)
    assert code == 1 and "no mesh: the density is 0 everywhere, it has no surface" in err
    assert not (again / "save" / "it6-export").exists()
