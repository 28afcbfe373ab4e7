"""Folders of another kind or distilled, on tiny random weights, from the command line; presets of those of today."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.priors.adapters.flux2_klein import ADAPTER
from threestudio_rf.priors.adapters.load import load_adapted


def test_a_folder_of_another_kind_and_a_distilled_one(launcher, tmp_path: Path, adapted: Callable[[str], Path]) -> None:
    line = ["task=sample", "prior=prx", "prompt=a red ball", "sample.steps=1", f"exp_root_dir={tmp_path}/out"]
    code, _, _, err = launcher(*line, f"prior.path={adapted('sana')}")
    assert code == 2 and "use prior=sana" in err
    index = adapted("flux2_klein") / "model_index.json"
    kept = index.read_text()
    index.write_text(json.dumps(json.loads(kept) | {"is_distilled": True}))
    with pytest.warns(UserWarning, match=r"seems to be distilled \(is_distilled.*guidance is built into the field"):
        load_adapted(ADAPTER, adapted("flux2_klein"), size=64)
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
