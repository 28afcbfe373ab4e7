"""Every file of configs/ is small and builds with the closed-form prior, every setting is read somewhere. That Hydra
composes the same settings is said by app/test_layers.py.

Mutation seen to fail: a field added to a settings dataclass that nobody reads; a WEIGHTS name changed.
"""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from pathlib import Path

import pytest
import torch

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.method import lift_settings, rates
from threestudio_rf.app.build.scene import build_any, build_prior
from threestudio_rf.app.build.views import embed_views, turntable
from threestudio_rf.app.run.extras import LOGGERS
from threestudio_rf.app.settings import groups as settings_groups
from threestudio_rf.app.settings import loss as settings_loss
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import CONFIGS, choices, groups
from threestudio_rf.app.settings.layers import settings
from threestudio_rf.distill.weights import WEIGHTS
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.trainer.optim import make_optimiser

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
SMALL = {"scene.encoding.log2_table": 8, "scene.encoding.levels": 2}
WITH = {("preset", "refine_exact"): {"experiment": "tiny_exact"}}
"""What a choice needs beside it, as its file says."""


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes_and_builds_with_the_gaussian_prior(experiment):
    config = settings({"experiment": experiment}, {"prompt": "a red ball"})
    check(config)
    assert config.experiment == experiment
    prior = "tiny_sd" if config.loss.combiner in ("vsd", "trace") else "gaussian"  # a formula has no twin
    config = settings({"experiment": experiment, "prior": prior}, {"prompt": "a red ball", **SMALL})
    check(config)
    prior = build_prior(config.prior, CPU)
    scene = build_any(config, lambda: prior, CPU)
    conditions, negative = embed_views(config, prior)
    assert (len(conditions), len(negative)) == (1 if isinstance(scene, ImageScene) else 4, 1)
    made = lift_settings(config)
    assert made.steps == config.trainer.steps and made.lambdas["distill"](0) > 0
    assert 0 < made.times.t_min(0) < made.times.t_max(0) < 1
    groups_made = {group["name"] for group in make_optimiser(scene, rates(config)).param_groups}
    assert ({"image"} if isinstance(scene, ImageScene) else {"encoding", "networks"}) <= groups_made
    assert len(turntable(config.camera, config.camera.test_views)) == config.camera.test_views


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in groups() for name in choices(group)])
def test_every_choice_of_every_group_works(group, name):
    given = {"prompt": "a red ball", "resume": "somewhere", "edit.image": "picture.png"}
    check(settings({group: name, **WITH.get((group, name), {})}, given))


def test_the_sd3_experiment_has_the_reference_windows_as_noise_levels():
    config = typed(compose(["experiment=rfds_sd3", "prompt=x"]))
    made = lift_settings(config)
    times = made.times.draw(4000, 0, 100, 0)
    assert 0.0577 <= times.min() < 0.075 and 0.865 < times.max() <= 0.875
    assert times.mean() == pytest.approx(0.578, abs=0.01) and times.median() == pytest.approx(0.628, abs=0.02)
    assert made.method.scale == 100 and made.lambdas["distill"](0) == 1


def test_every_file_is_small_and_safe():
    for file in CONFIGS.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 25, file
        assert "_target_" not in text and "!!" not in text, file


def test_the_weights_that_the_schema_knows_are_those_of_distill():
    assert tuple(WEIGHTS) == settings_loss.WEIGHTS


def test_every_setting_is_read_somewhere():
    read = set(LOGGERS)
    for file in (ROOT / "threestudio_rf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    found = [*vars(settings_groups).values(), *vars(settings_loss).values()]
    kinds = [Config, *(kind for kind in found if dataclasses.is_dataclass(kind))]
    unread = [f"{kind.__name__}.{f.name}" for kind in kinds for f in dataclasses.fields(kind) if f.name not in read]
    assert unread == []
    assert len(kinds) > 10


def test_the_requirements_are_those_of_the_package_with_torch_pinned():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert sorted(listed[1:]) == sorted(item for item in wanted if not item.startswith("torch>"))
    assert listed[0].startswith("torch==")
