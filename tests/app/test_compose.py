"""Hydra's errors in one line, stored settings, resumed settings.

Mutations seen to fail: `_escaped` made the identity (stored interpolations), the version check removed, `on_top`
without the named keys (a change back to the default), a second stage without the preset that its own builds on.
"""

from __future__ import annotations

import pytest
import yaml

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, differences, from_text, on_top, to_text, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.app.settings.layers import on_preset


def composed(*line: str) -> Config:
    return typed(compose(translate(list(line)).overrides))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trainer.steps=abc", "trainer.steps"),
        ("trainer.steps=1.5", "Integer"),
        ("trainer.steps=null", "not Optional"),
        ("trainer.steps=", "Integer"),
        ("camera.sizes=x", "camera.sizes"),
        ("loss.scale=[1", r"\[1"),
        ("experiment=rfds_sd", "expected one of .*; did you mean rfds_sd3"),
        ("prior=sd4", "expected one of chroma, .*, sdxl, .*; did you mean sd"),
        ("seed='", "'"),
    ],
)
def test_what_hydra_refuses_is_one_line(line, message):
    with pytest.raises(UserError, match=message) as caught:
        composed("prompt=a red ball", line)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_the_default_is_the_tiny_experiment():
    config = composed("prompt=a red ball")
    assert (config.experiment, config.prior.name, config.name, config.task) == (
        "tiny",
        "tiny_instaflow",
        "tiny",
        "lift",
    )
    camera = config.camera
    assert (camera.eval_size * camera.video_scale, camera.eval_elevation, camera.test_views) == (384, 25, 48), "video"


def test_settings_that_were_changed_do_not_change_those_composed_after_them():
    first = compose(["seed=3"])
    first.seed, first.trainer.steps = 7, 8
    assert compose(["seed=3"]).seed == 3 and compose(["seed=3"]).trainer.steps != 8


def test_stored_settings_come_back_literally():
    config = composed("prompt=x")
    config.prompt = "it's ${oc.env:HOME}, \\${a} \\\\ {b} \n 50% 😀"
    config.prior.prompt_front = "${prompt}"
    config.loss.t_max = [450, 0.98, 0.7, 451]
    assert from_text(to_text(config), "here") == config


def changed(**changes) -> str:
    return yaml.safe_dump(yaml.safe_load(to_text(Config())) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "here is not YAML"),
        ("- 1", "no version in it"),
        ("system: {prompt: x}", "no version in it.*experiments: .*tiny"),
        (changed(version=2), "version 2, this program writes and reads version 1"),
        (changed(version="x"), "version x"),
        (changed(promt="a"), "here: unknown key promt; did you mean prompt"),
        (changed(seed="abc"), "here: .*Integer"),
        (changed(trainer=5), "here: unknown key trainer"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_broken_or_foreign_file_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        from_text(text, "here")


def test_a_resumed_run_keeps_its_settings_but_for_what_is_named():
    stored = composed("experiment=rfds_sd3", "prompt=a hat", "loss.scale=30", "trainer.steps=77")
    overrides = translate(["resume=x", "trainer.steps=900", "loss.scale=100.0"]).overrides
    merged = on_top(stored, overrides)
    assert merged.experiment == "rfds_sd3" and merged.prompt == "a hat" and merged.prior.name == "sd3"
    assert merged.trainer.steps == 900
    assert merged.loss.scale == 100.0


def test_a_named_group_replaces_its_settings():
    stored = composed("prompt=a hat", "loss.noise=rev")
    assert on_top(stored, ["loss=rfds"]).loss.noise == "random"


def test_structural_changes_are_told_apart_from_the_others():
    old = composed("prompt=a hat")
    new = composed("prompt=a hat", "scene.encoding.levels=4", "optim.lr_encoding=0.5", "export.resolution=9", "tag=x")
    structural, other = differences(old, new)
    assert structural == ["scene.encoding.levels: 8 -> 4"]
    assert other == ["optim.lr_encoding: 0.01 -> 0.5"]
    assert differences(old, composed("prompt=a hat", "scene.renderer.ray_chunk=9", "prior=gaussian"))[0] == [
        "prior.name: tiny_instaflow -> gaussian"
    ]


@pytest.mark.parametrize(
    "item", ["seed=[1", "seed='", "seed=~", "seed=abc", "camera.sizes={a:1}", "seed=!!python/x", "preset=[3,2,1]"]
)
def test_a_value_that_cannot_be_read_is_one_line_with_its_key_and_no_name_of_an_error(item: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["experiment=tiny", item])
    text = str(caught.value)
    assert item.partition("=")[0] in text and "\n" not in text
    assert "Exception" not in text and "Error" not in text


@pytest.mark.parametrize("name", ["refine", "refine_exact", "refine_sd", "refine_tiny"])
def test_the_preset_of_a_second_stage_is_the_preset_by_name_with_what_it_builds_on(name: str) -> None:
    field = ["experiment=tiny_exact", "prompt='a red ball'"]
    assert on_preset(typed(compose(field)), name) == typed(compose([*field, f"preset={name}"]))
