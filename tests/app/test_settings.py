"""Every setting arrives where it is used: each is changed, and what reaches trainer, scene, prior or plan must differ.

One test over all of them. What `reads.py` calls read must change something, in a place named after the setting where
settings could be exchanged; what it calls unread must change nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from portrait import changed, portrait

from threestudio_rf.app.build import method as methods
from threestudio_rf.app.build import prior as priors
from threestudio_rf.app.build import scene as scenes
from threestudio_rf.app.build.method import build_twin, embed_roles, lift_settings
from threestudio_rf.app.build.reads import unread
from threestudio_rf.app.build.views import embed_views, turntable
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.app.tasks import lift
from threestudio_rf.priors.gaussian import GaussianPrior

CPU = torch.device("cpu")
SMALL = ["prompt='a red ball'", "scene.encoding.levels=2", "scene.encoding.log2_table=6", "scene.field.hidden=4"]
SMALL += ["scene.renderer.occupancy_resolution=4", "export.resolution=12", "experiment=tiny_rfds"]
LIFTS: dict[str, list[str]] = {
    "nerf": ["prior=gaussian"],
    "environment": ["prior=gaussian", "scene.background.name=environment", "loss=rfds_rev"],
    "image": ["prior=gaussian", "scene=image", "scene.image.per_step=2", "loss=sdi", "scene.image.view=side"],
    "ism": ["prior=gaussian", "loss=ism"],
    "nfsd": ["prior=gaussian", "loss=nfsd"],
    "bridge": ["prior=gaussian", "loss.combiner=bridge", "loss.t_law=dreamtime", "loss.t_width=0.1"],
    "vsd": ["prior=gaussian", "loss=vsd", "loss.perp_neg=true"],
    "sd": ["prior=sd"],
    "sd3": ["prior=sd3"],
    "exact": ["prior=tiny_exact"],
}
HIDDEN = {
    "scene.encoding.backend": "encoding.asked",
    "scene.encoding.base": "resolution",
    "scene.encoding.growth": "resolution",
    "scene.encoding.log2_table": "size",
    "scene.encoding.features": "out_features",
    "scene.field.hidden": "out_features",
    "scene.field.layers": "network",
    "scene.renderer.occupancy_resolution": "occupancy.resolution",
    "scene.renderer.occupancy_threshold": "occupancy.threshold",
    "scene.background.random": "random_background",
    "scene.background.name": "background",
    "scene.image.size": "values",
    "scene.image.particles": "values",
    "scene.image.init": "values",
    "scene.image.std": "values",
    "scene.image.view": "words",
    "camera.views": "views.counts",
    "camera.test_views": "turntable",
    "camera.validation_views": "validation",
    "camera.eval_size": "turntable.height",
    "loss.lambda_opaque": "opaqueness",
    "loss.lambda_orient": "orientation",
    "loss.lambda_tv": "total_variation",
    "loss.neg_prompt": "words",
    "loss.target_prompt": "words",
    "loss.artifact_prompt": "words",
    "loss.twin_lr": "twin.rate",
    "prior.image_size": "encode_size",
    "prior.size": "means",
    "prior.path": "asked.given",
    "prior.views": "wording",
    "prior.view_pattern": "words",
    "prior.prompt_side": "words",
    "prior.prompt_front": "words",
    "prior.prompt_back": "words",
    "prior.prompt_overhead": "words",
    "prior.bank_views": "views",
    "prior.bank_std": "asked.q",
    "prior.name": "prior",
    "negative_prompt": "words",
    "prompt": "words",
}
"""Where a setting arrives under another name than its last word, its group's prefix taken off."""


@pytest.fixture
def asked(monkeypatch):
    """Adapters and the twin that only note what they are asked for."""
    means = torch.zeros(2, 3, 8, 8)

    def noted(name: str) -> Callable[..., Any]:
        def load(*given: Any, **options: Any) -> Any:
            prior = GaussianPrior(means, 0.1, names=["red", "blue"])
            prior.asked = {"adapter": name, "given": given, **options}  # type: ignore[attr-defined]
            return prior

        return load

    for name in ("load_tiny", "load_sd", "load_sd3", "ExactPrior"):
        monkeypatch.setattr(priors, name, noted(name))
    make = scenes.make_encoding

    def noted_encoding(backend: str, **options: Any) -> Any:
        encoding, reason = make("torch", **options)
        encoding.asked = backend
        return encoding, reason

    monkeypatch.setattr(scenes, "make_encoding", noted_encoding)
    monkeypatch.setattr(methods, "Twin", lambda prior, like, **options: SimpleNamespace(**options))


def config_of(*line: str) -> Config:
    return typed(compose([*SMALL, *line]))


def other(config: Config, key: str, value: Any) -> Config:
    """The settings with another value of one of them."""
    made = copy.deepcopy(config)
    *groups, name = key.split(".")
    node: Any = made
    for group in groups:
        node = getattr(node, group)
    setattr(node, name, value)
    return made


def candidates(key: str, value: Any) -> Iterator[Any]:
    """Other values of a setting, within its range."""
    leaf = leaves()[key]
    rule = leaf.rule
    inside = lambda x: rule.get("low", x) <= x <= rule.get("high", x) and x > rule.get("above", x - 1)  # noqa: E731
    tables = {"prior.name": priors.PRIORS, "scene.name": scenes.SCENES}
    if key in tables:
        yield from (name for name in tables[key] if name != value)
    elif "choices" in rule:
        yield from ([one] if isinstance(value, list) else one for one in rule["choices"] if one != value)
    elif isinstance(value, bool):
        yield not value
    elif rule.get("ramp"):
        yield 0.51
    elif value is None or isinstance(value, str):
        yield from ((3, 0.3) if value is None and "str" not in str(leaf.type) else ("a blue {prompt}, {view}", "12"))
    elif isinstance(value, int | float):
        yield from (
            type(value)(x) for x in (value + 1, value * 2, value - 1, 0.9 * value + 0.01) if inside(type(value)(x))
        )
    elif value:
        yield from ([one, *value[1:]] for one in (value[0] + 8, 0.9 * value[0] + 0.01) if inside(one))
    else:
        yield ["x"] if "str" in str(leaf.type) else [1]


def lifted(config: Config) -> dict[str, Any]:
    """What reaches trainer, scene, prior and the pictures of a lift."""
    made = lift.Lift(Run(config, Path(), CPU))
    words: list[list[str]] = []
    embed = made.prior.embed
    made.prior.embed = lambda prompts: words.append(prompts) or embed(prompts)  # type: ignore[method-assign, func-returns-value]
    conditions, _ = embed_views(config, made.prior)
    embed_roles(config, made.prior, views=len(conditions) > 1)
    found: dict[str, Any] = {"words": words, "twin": build_twin(config, made.prior, conditions)}
    del made.prior.embed
    found |= {"prior": made.prior, "scene": made.scene, "settings": lift_settings(config)}
    groups = [
        {name: value for name, value in group.items() if name != "params"} for group in made.optimiser.param_groups
    ]
    found["turntable"] = turntable(config.camera, config.camera.test_views)
    found["validation"] = turntable(config.camera, config.camera.validation_views)
    return portrait(found | {"optimiser": groups})


def arrived(config: Config, key: str, sight: Callable[[Config], dict[str, Any]], before: dict[str, Any]) -> list[str]:
    """The paths that another value of a setting changes; the first value that changes any."""
    for value in candidates(key, value_of(config, key)):
        try:
            found = changed(before, sight(other(config, key, value)))
        except ValueError:
            continue
        if found:
            return found
    return []


LIFTED = ("prior.", "scene.", "camera.", "loss.", "optim.", "trainer.", "prompt", "negative_prompt", "seed")
ELSEWHERE = ("loss.name", "trainer.validate_every", "trainer.log_every", "prior.cache")


def place_of(key: str) -> str:
    """What the path is called where a setting arrives."""
    word = key.rpartition(".")[2]
    for prefix in ("lr_", "lambda_", "eval_", "perp_neg_f_", "twin_", "t_"):
        if word.startswith(prefix) and word not in ("t_min", "t_max"):
            word = word.removeprefix(prefix)
            break
    return HIDDEN.get(key, word)


@pytest.mark.usefixtures("asked")
def test_every_setting_of_a_lift_arrives_at_its_place():
    seen: dict[str, str] = {}
    lost = []
    for line in LIFTS.values():
        config = config_of(*line)
        deaf, before = unread(config), lifted(config)
        for key in leaves():
            if not key.startswith(LIFTED) or key in (*ELSEWHERE, *seen, *deaf) or key == "prompt_file":
                continue
            found = arrived(config, key, lifted, before)
            if found and any(place_of(key) in path for path in found):
                seen[key] = "arrived"
            else:
                lost.append((key, line, found[:4]))
    assert [item for item in lost if item[0] not in seen] == []
    wanted = {key for key in leaves() if key.startswith(LIFTED) and key not in ELSEWHERE} - {"prompt_file"}
    assert wanted - set(seen) == set()
