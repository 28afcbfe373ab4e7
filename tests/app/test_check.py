"""Ranges and combinations: each is refused before a model loads, with its key and the range in the message.

Mutations seen to fail: each check removed in turn (the table has a row for every one); kind or mirror_time left out of
what identifies a prior.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.prior import prior_id
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config, leaves
from threestudio_rf.app.settings.groups import PriorConfig


def config_with(changes: dict) -> Config:
    config = Config(prompt="a red ball")
    config.camera.sizes, config.camera.milestones, config.camera.views = [64], [], [2]
    for key, value in changes.items():
        *path, name = key.split(".")
        node = config
        for part in path:
            node = getattr(node, part)
        assert key in leaves()
        setattr(node, name, value)
    return config


def test_the_defaults_are_good():
    check(Config(prompt="a red ball"))
    check(config_with({}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.t_min": 0.9, "loss.t_max": 0.5}, r"loss\.t_min=0\.9.*t_min at most t_max.*0\.9 > 0\.5"),
        ({"loss.t_min": [0, 0.02, 0.99, 100]}, r"at step 100"),
        (
            {"camera.sizes": [[64, 32]]},
            r"camera\.sizes=\[\[64, 32\]\]: expected a list whose elements are each a whole number",
        ),
        ({"camera.sizes": [None]}, r"camera\.sizes=\[None\]: expected a list"),
        ({"camera.sizes": [64.5]}, r"camera\.sizes=\[64\.5\]: expected a list"),
        ({"camera.fovy": ["a", 2]}, r"camera\.fovy=.*each a number"),
        ({"edit.prompts": [1]}, r"edit\.prompts=\[1\]: .*each a text"),
        ({"grid.seeds": [True]}, r"grid\.seeds=\[True\]: expected a list"),
        ({"loss.lambda_distill": None}, r"loss\.lambda_distill=null: expected a number, or numbers over steps"),
        ({"optim.lr_encoding": True}, r"optim\.lr_encoding=true: expected a number"),
        ({"loss.t_max": {"a": 1}}, r"loss\.t_max="),
        ({"negative_prompt": "caf\udce9"}, "negative_prompt=caf\ufffd: expected text in UTF-8"),
        ({"edit.prompts": ["\ud800"]}, r"edit\.prompts=.*expected text in UTF-8"),
        ({"loss.t_max": 1.5}, r"loss\.t_max=1\.5: expected above 0 and at most 1"),
        ({"loss.t_max": [0, 0.5, 1.5, 10]}, r"loss\.t_max=.*got 1\.5"),
        ({"loss.t_max": [0, 0.5, 0.6, 10.0]}, r"loss\.t_max=.*whole number"),
        ({"loss.space": "eps", "loss.t_max": 1.0}, r"loss\.t_max"),
        ({"loss.perp_neg": True, "loss.scale": 0.0}, r"loss\.perp_neg=true, loss\.scale=0: expected"),
        ({"loss.perp_neg": True, "loss.perp_neg_f_sb": [1.0, 0.5, -0.61]}, r"perp_neg_f_sb=.*at least 0.*got -0\.003"),
        ({"loss.perp_neg": True, "loss.perp_neg_f_fs": [-1.0, 0.5, 0.9]}, r"perp_neg_f_fs=.*at least 0.*got -0\.1,"),
        ({"loss.perp_neg_f_fsb": [1.0, 0.5]}, r"loss\.perp_neg_f_fsb=\[1\.0, 0\.5\]: expected 3 numbers"),
        ({"loss.perp_neg_f_sf": [1.0, -800.0, 0.0]}, r"perp_neg_f_sf=.*at least -100"),
        ({"optim.lr_encoding": -0.1}, r"optim\.lr_encoding=-0\.1: expected at least 0"),
        ({"optim.lr_networks": float("nan")}, r"optim\.lr_networks=nan"),
        ({"export.texture": 0}, r"export\.texture=0: expected auto, none, or 16 to 4096 texels a side"),
        ({"export.texture": 100000}, r"export\.texture=100000: expected auto, none, or 16 to 4096"),
        ({"export.texture": True}, r"export\.texture=True: expected auto, none"),
        ({"export.texture": "1k"}, r"export\.texture=1k: expected auto, none"),
        ({"export.faces": -1}, r"export\.faces=-1: expected at least 0"),
        ({"export.smooth": 9.0}, r"export\.smooth=9\.0: expected at least 0 and at most 5"),
        ({"optim.betas": [0.9]}, r"optim\.betas=\[0\.9\]: expected 2 numbers"),
        ({"optim.eps": 0.0}, r"optim\.eps=0\.0: expected above 0"),
        ({"camera.sizes": [0]}, r"camera\.sizes=\[0\]: expected at least 8"),
        ({"camera.sizes": [63]}, r"camera\.sizes=\[63\]: expected multiples of 16.*got 63"),
        (
            {"camera.sizes": [64, 128]},
            r"camera\.sizes=\[64, 128\]: expected one for all steps or one more than camera\.mil",
        ),
        ({"camera.views": [1, 2]}, r"camera\.views=\[1, 2\]: expected one for all"),
        ({"camera.sizes": [16] * 3, "camera.milestones": [9, 5]}, r"camera\.milestones=\[9, 5\]: expected rising"),
        ({"camera.elevation": [20.0, -20.0]}, r"camera\.elevation=.*low at most high"),
        ({"camera.distance": [0.0, 1.0]}, r"camera\.distance=.*above 0"),
        ({"camera.eval_size": 0}, r"camera\.eval_size=0: expected at least 8"),
        ({"trainer.steps": 0}, r"trainer\.steps=0: expected at least 1"),
        ({"scene.radius": 0.0}, r"scene\.radius"),
        ({"scene.encoding.levels": 0}, r"scene\.encoding\.levels=0: expected at least 1 and at most 32"),
        ({"scene.renderer.samples_per_ray": 1}, r"samples_per_ray=1: expected at least 2"),
        ({"scene.background.rgb": [1.0, 2.0, 0.0]}, r"scene\.background\.rgb"),
        ({"loss.noise": "rv"}, r"loss\.noise=rv: expected one of random, rev, .*; did you mean rev"),
        ({"loss.weight": "sigma_2"}, r"did you mean sigma2"),
        ({"task": "lft"}, r"task=lft: expected one of .*did you mean lift"),
        ({"checkpoint.keep": 0}, r"checkpoint\.keep=0"),
        ({"export.resolution": 4}, r"export\.resolution=4"),
        ({"export.threshold": "high"}, r"export\.threshold=high: expected a number or auto"),
        ({"export.formats": []}, r"export\.formats"),
        ({"export.formats": ["fbx"]}, r"export\.formats=fbx: expected one of glb"),
        ({"sample.steps": 0}, r"sample\.steps=0"),
        ({"seed": -1}, r"seed=-1"),
        ({"device": "gpu"}, r"device=gpu: expected auto, cpu, cuda"),
        ({"prompt": ""}, r"the prompt is empty"),
        ({"prompt": " \n\t"}, r"the prompt is empty"),
        ({"name": " "}, r"name is empty"),
        ({"prior.view_pattern": "{view}"}, r"prior\.view_pattern"),
        ({"prior.name": "sd3"}, r"prior\.path"),
        ({"resume": "a", "weights": "b"}, r"only one of them"),
        ({"prompt_file": "a", "weights": "b"}, r"prompt_file= begins new runs; resume= and weights= are for one"),
        ({"prompt_file": "a", "resume": "b"}, r"prompt_file= begins new runs"),
        ({"mode": "export"}, r"mode=export needs a finished run"),
        ({"task": "evaluate"}, r"task=evaluate needs a finished run"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        check(config_with(changes))


def test_a_run_without_text_must_be_asked_for():
    check(config_with({"prompt": "", "allow_empty_prompt": True}))
    check(config_with({"prompt": "", "task": "doctor"}))
    check(config_with({"prompt": "", "resume": "somewhere"}))


def test_another_prior_has_other_picture_sizes():
    check(config_with({"camera.sizes": [24], "prior.name": "gaussian", "prior.size": 12}))


def test_what_identifies_a_prior_tells_a_mirrored_or_redefined_one_from_its_own() -> None:
    plain = PriorConfig(name="sd", path="folder")
    assert set(prior_id(plain)) == {"name", "path", "revision"}
    others = (replace(plain, kind="flow"), replace(plain, mirror_time=True), replace(plain, revision="main"))
    found = [prior_id(plain), *(prior_id(other) for other in others)]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert all(isinstance(value, str) for values in found for value in values.values())


def test_a_grid_that_no_memory_holds_is_refused_with_its_keys(monkeypatch) -> None:
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8e9))
    changes = {"scene.encoding.levels": 32, "scene.encoding.log2_table": 24, "device": "cpu"}
    with pytest.raises(UserError, match=r"scene\.encoding\.levels=32, scene\.encoding\.log2_table=24: .* 13 GB"):
        check(config_with(changes))
    check(config_with(changes | {"task": "sample"}))
    small = {"scene.encoding.levels": 32, "scene.encoding.log2_table": 8, "device": "cpu"}
    with pytest.raises(
        UserError, match=r"levels=32, .*growth=.*: the finest level has \d+ cells a side, expected less"
    ):
        check(config_with(small))
