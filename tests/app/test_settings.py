"""Every setting arrives where it is used: each is changed, and what reaches trainer, scene, prior or plan must differ.

One test over all of them. What `reads.py` calls read must change something, in a place named after the setting where
settings could be exchanged; what it calls unread must change nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sights
import torch
import yaml
from portrait import changed
from sights import Sight

from threestudio_rf.app.build import method as methods
from threestudio_rf.app.build import prior as priors
from threestudio_rf.app.build import scene as scenes
from threestudio_rf.app.build.check.reads import unread
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run.extras import LOGGERS
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.app.settings.grammar import groups
from threestudio_rf.app.settings.layers import settings
from threestudio_rf.app.tasks import lift, sample
from threestudio_rf.app.tasks.output import asset, look
from threestudio_rf.core.level import DiscreteVP, betas
from threestudio_rf.edit.method import METHODS
from threestudio_rf.export.files import write
from threestudio_rf.export.media import png
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.trainer.log import Metrics

SMALL = ["prompt='a red ball'", "scene.encoding.levels=2", "scene.encoding.log2_table=6", "scene.field.hidden=4"]
SMALL += ["scene.renderer.occupancy_resolution=4", "export.resolution=12", "experiment=tiny_rfds"]
EDIT = ("task=edit", "prior=gaussian", "edit.image=TMP/given.png", "edit.source=red", "edit.steps=3")
SAMPLE = ("task=sample", "sample.steps=4", "sample.n=3", "sample.batch=2")
BANDS = "scene.encoding.start_level=1"
SIGHTS: list[tuple[Any, ...]] = [
    (sights.lifted, "prior=gaussian"),
    (
        sights.lifted,
        "prior=gaussian",
        "scene.background.name=environment",
        "scene.shading.start=3",
        "loss=rfds_rev",
        BANDS,
    ),
    (sights.lifted, "prior=gaussian", "scene=image", "scene.image.per_step=2", "loss=sdi", "scene.image.view=side"),
    (sights.lifted, "prior=gaussian", "scene=mesh", "scene.mesh.resolution=8"),
    (sights.lifted, "prior=gaussian", "loss=ism"),
    (sights.lifted, "prior=gaussian", "loss=trace"),
    (sights.lifted, "prior=gaussian", "loss=nfsd"),
    (sights.lifted, "prior=gaussian", "loss.combiner=bridge", "loss.t_law=dreamtime", "loss.t_width=0.1"),
    (sights.lifted, "prior=gaussian", "loss=vsd", "loss.perp_neg=true"),
    (sights.lifted, "prior=sd"),
    (sights.lifted, "prior=sd3"),
    (sights.lifted, "prior=tiny_exact"),
    (
        sights.looped,
        "prior=gaussian",
        "trainer.steps=12",
        "trainer.log_every=2",
        "checkpoint.every=5",
        "trainer.validate_every=4",
        "trainer.progress=3",
    ),
    (sights.judged, "prior=tiny_sd3"),
    (sights.begun, "scene=mesh", "weights=TMP/model.ply"),
    (sights.turned, "prior=gaussian", "camera.eval_size=16", "camera.test_views=2"),
    (sights.exported, "prior=gaussian"),
    (sights.plotted, "prior=gaussian", *SAMPLE, "negative_prompt=blue"),
    (sights.plotted, "prior=gaussian", *SAMPLE, "sample.sampler=ddim", "sample.eta=0.5"),
    (sights.plotted, "prior=sd", *SAMPLE, "sample.sampler=ddpm"),
    (sights.plotted, "prior=sd", *SAMPLE, "sample.image=TMP/given.png", "sample.mask=TMP/mask.png"),
    (sights.sampled, "prior=sd", *SAMPLE, "sample.strip=true", "sample.log_every=2"),
    (sights.steered, *EDIT, "prior=tiny_sd3"),
    *((sights.steered, *EDIT, f"edit.method={name}", "edit.steps=null") for name in METHODS),
    (sights.edited, *EDIT, "edit.video=true", "edit.keep=0"),
    (sights.trained, "task=train_tiny", "train_tiny.part=sd"),
    (sights.trained, "task=train_tiny", "train_tiny.part=vae", "train_tiny.discriminator=hinge"),
    (sights.planned, "task=grid", "grid=vsd_2d"),
]
REACHED = {
    sights.lifted: ("prior.", "scene.", "camera.", "loss.", "optim.", "trainer.", "prompt", "negative_prompt", "seed"),
    sights.looped: ("trainer.", "checkpoint.", "wandb"),
    sights.judged: ("evaluate.",),
    sights.begun: ("scene.mesh.up",),
    sights.turned: ("camera.video_",),
    sights.exported: ("export.",),
    sights.plotted: ("sample.",),
    sights.sampled: ("sample.",),
    sights.steered: ("edit.",),
    sights.edited: ("edit.",),
    sights.trained: ("train_tiny.",),
    sights.planned: ("grid.",),
}
"""Which settings each sight is asked about."""
ELSEWHERE = {
    "version": "test_compose.py",
    "task": "test_reads.py",
    "mode": "test_run.py",
    "experiment": "test_compose.py",
    "preset": "../priors/test_rows.py",
    "prompt_file": "test_edges.py",
    "allow_empty_prompt": "test_check.py",
    "name": "test_folder.py",
    "tag": "test_compose.py",
    "exp_root_dir": "test_run.py",
    "device": "test_check.py",
    "resume": "test_run.py",
    "weights": "test_run.py",
    "viewer": "test_viewer.py",
    "viewer_port": "test_viewer.py",
    "log_level": "test_flags.py",
    "refine": "test_mesh_lift.py",
    "refine_with": "test_mesh_lift.py",
    "refine_steps": "test_mesh_lift.py",
    "scene.mesh.paint_steps": "test_mesh_lift.py",
    "loss.name": "test_method.py",
    "prior.cache": "../priors/test_rows.py",
    "prior.delta_from": "test_lora.py",
    "prior.delta_scale": "test_lora.py",
    "grid.docs": "test_grid.py",
    "grid.jobs": "test_grid.py",
    "trainer.threads": "test_threads.py",
}
"""Settings of the rim, and the file that has a test of each."""
HIDDEN = {
    "camera.position_perturb": "stray.0",
    "camera.center_perturb": "stray.1",
    "camera.up_perturb": "stray.2",
    "scene.encoding.start_level": "bands",
    "scene.encoding.start_step": "bands.start",
    "scene.encoding.update_steps": "bands.every",
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
    "scene.mesh.ball": "distance",
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
def asked(monkeypatch, tmp_path):
    """Adapters, twin, factory and judge that only note what they are asked for; a picture to begin with."""
    means = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(-1, 3, 8, 8)
    table = DiscreteVP(betas("scaled_linear", 100))

    def noted(name: str) -> Callable[..., Any]:
        def load(*given: Any, **options: Any) -> Any:
            path = {"schedule": table, "kind": "eps"} if name == "load_sd" else {}
            prior = GaussianPrior(means, 0.5, names=["red", "side"], **path)
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
    monkeypatch.setattr("threestudio_rf.app.report.score.score_scene", sights.noted("score", {}))
    monkeypatch.setattr("threestudio_rf.tiny.train.parts.run_part", sights.noted("run_part"))
    monkeypatch.setattr("threestudio_rf.tiny.train.crew.Crew", sights.noted("crew"))
    monkeypatch.setattr("threestudio_rf.tiny.train.ship.ship", sights.noted("ship"))
    monkeypatch.setattr(sample, "run", sights.noted("run", sample.run))
    monkeypatch.setattr(look, "extract", sights.noted("extract", lambda *_, **__: sights.TETRA))
    monkeypatch.setattr(asset, "optional", lambda *_: True)
    monkeypatch.setattr(asset, "textured", sights.noted("textured"))
    steps = [SimpleNamespace(step=i, metrics={"loss": 1.0, "t": 0.5, "network_calls": 1.0}) for i in range(12)]
    monkeypatch.setattr(lift, "run_lift", lambda made: iter(steps))
    monkeypatch.setattr(lift, "watch", lambda made, judge: sights.calls.append(("watched", made.step)))
    frames = lambda made, frame: sights.calls.append(("frame", made.step))  # noqa: E731
    monkeypatch.setattr(lift.look, "progress_frame", frames)
    monkeypatch.setitem(LOGGERS, "wandb", sights.noted("wandb", lambda run: sights.noted("published")))
    monkeypatch.setattr(lift.checkpoint, "save", lambda at, state, keep: sights.calls.append((state["step"], keep)))
    add = Metrics.add
    monkeypatch.setattr(
        Metrics, "add", lambda self, step, row: (sights.calls.append(("row", step)), add(self, step, row))
    )
    png(tmp_path / "given.png", torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)))
    write(sights.TETRA, tmp_path, formats=["ply"])
    png(tmp_path / "mask.png", (torch.arange(64).view(1, 8, 8) % 8 < 4).float())
    return tmp_path


@cache
def chosen(choice: tuple[tuple[str, str], ...]) -> Config:
    return settings(dict(choice))


def config_of(*line: str) -> Config:
    """The settings of a line, whose values are YAML."""
    items = dict(item.split("=", 1) for item in (*SMALL, *line))
    config = chosen(tuple((key, name) for key, name in items.items() if key in groups()))
    for key, text in items.items():
        config = config if key in groups() else other(config, key, yaml.safe_load(text))
    return config


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
    elif key == "export.threshold":
        yield 1.0
    elif value is None or isinstance(value, str):
        yield from ((3, 0.3) if value is None and "str" not in str(leaf.type) else ("a blue {prompt}, {view}", "12"))
    elif isinstance(value, int | float):
        yield from (
            type(value)(x) for x in (value + 1, value * 2, value - 1, 0.9 * value + 0.01) if inside(type(value)(x))
        )
    elif value and isinstance(value[0], str):
        yield from (value[1:], [value[0] + "x"])
    elif value:
        yield from ([one, *value[1:]] for one in (value[0] + 8, 0.9 * value[0] + 0.01) if inside(one))
    else:
        yield ["x"] if "str" in str(leaf.type) else [1]


def arrived(config: Config, key: str, sight: Sight, before: dict[str, Any], folder: Path) -> list[str]:
    """The paths that another value of a setting changes, by the first value that changes any; the setting itself where
    its value is refused by name."""
    for value in candidates(key, value_of(config, key)):
        try:
            found = changed(before, sight(other(config, key, value), folder))
        except UserError as error:
            found = [key] if key in str(error) or f"{value}" in str(error) else []
        except ValueError:
            continue
        if found:
            return found
    return []


def place_of(key: str) -> str:
    """What the path is called where a setting of a lift arrives."""
    word = key.rpartition(".")[2]
    for prefix in ("lr_", "lambda_", "eval_", "perp_neg_f_", "twin_", "t_"):
        if word.startswith(prefix) and word not in ("t_min", "t_max"):
            word = word.removeprefix(prefix)
            break
    return HIDDEN.get(key, word)


def test_every_setting_arrives_at_its_place(asked):
    seen, lost = set[str](), dict[str, Any]()
    for sight, *line in SIGHTS:
        config = config_of(*(item.replace("TMP", str(asked)) for item in line))
        deaf, before = unread(config), sight(config, asked / "run")
        for key in leaves():
            if not key.startswith(REACHED[sight]) or key in seen or key in deaf or key in ELSEWHERE:
                continue
            found = arrived(config, key, sight, before, asked / "run")
            if any(sight is not sights.lifted or place_of(key) in path for path in found):
                seen.add(key)
            else:
                lost[key] = (line, found[:4])
    assert {key: where for key, where in lost.items() if key not in seen} == {}
    assert set(leaves()) - seen == set(ELSEWHERE)


@pytest.mark.parametrize(("key", "file"), ELSEWHERE.items())
def test_what_no_object_holds_has_a_test_of_its_own(key, file):
    assert key.rpartition(".")[2] in (Path(__file__).parent / file).read_text(encoding="utf-8")
