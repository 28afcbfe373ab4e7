"""What the program advises works: the packages that it names are its own extras and are imported, the folders that it
shows are those of the environment, a large mesh is announced before it is made.

Seen to fail: an extra that nothing imports in OPTIONAL, HF_HOME left out in task=doctor, the line of a large mesh
removed or printed after the surface, an advice to install the package itself.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from threestudio_rf.app.settings.config import leaves
from threestudio_rf.app.tasks import doctor
from threestudio_rf.app.tasks.output import look

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "threestudio_rf").rglob("*.py")))
TABLE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = re.compile(r"[A-Za-z0-9_.-]+")
OURS = {NAME.match(line)[0] for lines in TABLE["optional-dependencies"].values() for line in lines}
OURS |= {NAME.match(line)[0] for line in TABLE["dependencies"]}


def imported(package: str) -> bool:
    """Whether the program imports it, or Hydra does so for a launcher."""
    return package.startswith("hydra-") or bool(re.search(rf"\b(import |optional\(\")({package})\b", SOURCES))


def test_the_doctor_advises_packages_that_are_used_and_says_how_to_get_each(monkeypatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in doctor.OPTIONAL else installed(name))
    lines = [line for line in doctor.versions() if line.startswith("optional, ")]
    told = [re.fullmatch(r"optional, not installed: (\S+), for .+ \(pip install (\S+)\)", line) for line in lines]
    assert [found[1] for found in told] == [found[2] for found in told] == list(doctor.OPTIONAL)
    assert {name: imported(name) for name in doctor.OPTIONAL} == dict.fromkeys(doctor.OPTIONAL, True)
    assert set(doctor.OPTIONAL) <= OURS
    assert {use.partition("=")[0] for use in doctor.OPTIONAL.values() if "=" in use} <= set(leaves())


def test_no_message_advises_to_install_the_package_by_its_name() -> None:
    assert not re.search(r"pip install[^\n]*threestudio[_-]rf", SOURCES), "it is on no index"


def test_the_doctor_shows_the_folder_of_the_hub_that_the_environment_names(launcher, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, _, out, _ = launcher("task=doctor", f"exp_root_dir={tmp_path}/out", "device=cpu")
    assert f"hub: {tmp_path}/elsewhere (not yet made)" in out and "HF_HUB_OFFLINE=1" in out


@pytest.mark.parametrize(("resolution", "said"), [(12, False), (512, True)])
def test_a_large_mesh_is_announced_before_it_is_made(
    finished, launcher, monkeypatch, tmp_path, resolution, said
) -> None:
    run, asked = shutil.copytree(finished, tmp_path / "run"), []
    real = look.extract

    def coarse(*fields, resolution: int, **settings):
        asked.append(resolution)
        print("the surface", flush=True)
        return real(*fields, resolution=12, **settings)

    monkeypatch.setattr(look, "extract", coarse)
    code, _, out, err = launcher(
        "task=export", f"resume={run}", f"export.resolution={resolution}", "export.formats=[ply]"
    )
    assert code == 0 and asked == [resolution], err
    assert (f"surface: {resolution}^3 densities, which takes minutes" in out.partition("the surface")[0]) == said
