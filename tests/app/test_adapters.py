"""Every prior of a folder, on tiny random weights, from the command line; presets of those of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import BUILDERS, build

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.priors.adapters.flux2_klein import ADAPTER
from threestudio_rf.priors.adapters.load import load_adapted


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder per kind."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: build(kind, root / kind) for kind in BUILDERS}


@pytest.mark.parametrize("kind", BUILDERS)
def test_samples_edits_inversions_and_pictures_are_made_with_it(launcher, tmp_path: Path, kind, folders) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 40, 40)).save(tmp_path / "red.png")
    prior = [f"prior={kind}", f"prior.path={folders[kind]}", "prior.size=64", f"prior.cache={tmp_path}/texts"]
    lines = {
        "sample": ["prompt=a red ball", "sample.n=1", "sample.steps=2"],
        "edit": [f"image={tmp_path}/red.png", "source=a red ball", "prompt=a blue ball", "edit.steps=2"],
        "invert": [f"image={tmp_path}/red.png", "prompt=a red ball", "edit.method=fireflow", "edit.steps=2"],
        "lift": ["prompt=a red ball", "scene=image", "trainer.max_steps=1", "scene.image.particles=1"],
    }
    for task, line in lines.items():
        code, _, _, err = launcher(f"task={task}", *prior, *line, f"exp_root_dir={tmp_path}/out")
        assert code == 0, (task, err)


def test_a_folder_of_another_kind_and_a_distilled_one(launcher, tmp_path: Path, folders) -> None:
    line = ["task=sample", "prior=prx", "prompt=a red ball", "sample.steps=1", f"exp_root_dir={tmp_path}/out"]
    code, _, _, err = launcher(*line, f"prior.path={folders['sana']}")
    assert code == 2 and "use prior=sana" in err
    index = folders["flux2_klein"] / "model_index.json"
    kept = index.read_text()
    index.write_text(json.dumps(json.loads(kept) | {"is_distilled": True}))
    with pytest.warns(UserWarning, match=r"seems to be distilled \(is_distilled.*guidance is built into the field"):
        load_adapted(ADAPTER, folders["flux2_klein"], size=64)
    index.write_text(kept)


@pytest.mark.parametrize(
    ("name", "prior", "scale"),
    [("prx", "prx", 5), ("sana", "sana", 4.5), ("flux2", "flux2_klein", 4), ("zimage", "zimage", 5)],
)
def test_presets_have_the_scale_of_each_pipeline_and_windows_of_noise(name, prior, scale) -> None:
    config = typed(compose([f"experiment=rfds_{name}", "prompt=x"]))
    check(config)
    assert (config.prior.name, config.loss.scale) == (prior, scale)
    assert (config.loss.t_min, config.loss.t_max) == (0.0577, 0.9932)
