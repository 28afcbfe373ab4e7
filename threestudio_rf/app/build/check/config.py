"""Ranges and combinations of settings, checked before any model is loaded; the message names the key and the range."""

from __future__ import annotations

import math
import re
from typing import Any

from threestudio_rf.app.build.check.edit import check_edit
from threestudio_rf.app.build.check.loss import check_loss
from threestudio_rf.app.build.check.reads import OF_TASK
from threestudio_rf.app.build.check.type import check_types
from threestudio_rf.app.build.prior import PRIORS, facts_of, knows_octants, multiple_of, on_table, wording
from threestudio_rf.app.build.sampling import check_sample
from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.app.settings.flags import choices
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.export.texture import LARGEST, SMALLEST
from threestudio_rf.trainer.ramp import ramp


def _range_text(rule: dict[str, Any]) -> str:
    parts = [f"above {rule['above']}"] if "above" in rule else []
    parts += [f"at least {rule['low']}"] if "low" in rule else []
    parts += [f"at most {rule['high']}"] if "high" in rule else []
    return " and ".join(parts)


def _check_number(key: str, value: Any, rule: dict[str, Any], shown: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    outside = (
        not math.isfinite(value)
        or value < rule.get("low", -math.inf)
        or value > rule.get("high", math.inf)
        or value <= rule.get("above", -math.inf)
    )
    if outside:
        raise UserError(f"{key}={shown}: expected {_range_text(rule) or 'a finite number'}, got {value}")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        hint = suggestion(value, choices)
        raise UserError(f"{key}={value}: expected one of {', '.join(c or repr(c) for c in choices)}{hint}")


def _check_leaf(key: str, value: Any, rule: dict[str, Any]) -> None:
    if value is None:
        return
    if rule.get("ramp"):
        try:
            corners = ramp(value).corners
        except ValueError as error:
            raise UserError(f"{key}={value}: {error}") from None
        for _, corner in corners:
            _check_number(key, corner, rule, value)
        return
    items = value if isinstance(value, list) else [value]
    for item in items:
        if "choices" in rule:
            _check_choice(key, item, rule["choices"])
        _check_number(key, item, rule, value)
    if isinstance(value, list):
        length = 2 if rule.get("span") else rule.get("length")
        if length is not None and len(value) != length:
            raise UserError(f"{key}={value}: expected {length} numbers, got {len(value)}")
        if rule.get("span") and value[0] > value[1]:
            raise UserError(f"{key}={value}: expected [low, high] with low at most high")


def check(config: Config) -> None:
    """Raises UserError for the first setting or combination that cannot work."""
    check_types(config)
    _check_choice("task", config.task, tuple(OF_TASK))
    for key, leaf in leaves().items():
        _check_leaf(key, value_of(config, key), leaf.rule)
    _check_choice("scene.name", config.scene.name, tuple(SCENES))
    _check_choice("prior.name", config.prior.name, tuple(PRIORS))
    check_loss(config)
    _check_camera(config)
    _check_scene(config)
    _check_prior(config)
    _check_text(config)
    _check_other(config)
    if config.task in ("edit", "invert"):
        check_edit(config)
    if config.task == "sample":
        negative, image, mask = (bool(x) for x in (config.negative_prompt, config.sample.image, config.sample.mask))
        check_sample(config.sample, negative_prompt=negative, image=image, mask=mask)


def check_group(config: Config, name: str) -> None:
    """One group of settings by itself, for callers in Python; raises UserError as `check`."""
    for key, leaf in leaves().items():
        if key.startswith(f"{name}."):
            _check_leaf(key, value_of(config, key), leaf.rule)
    if name == "prior":
        _check_choice("prior.name", config.prior.name, tuple(PRIORS))
        _check_prior(config)


def _check_camera(config: Config) -> None:
    camera = config.camera
    rising = all(a < b for a, b in zip(camera.milestones, camera.milestones[1:], strict=False))
    if not rising:
        raise UserError(f"camera.milestones={camera.milestones}: expected rising steps")
    several = len(camera.milestones) + 1
    for key, given in (("sizes", camera.sizes), ("views", camera.views)):
        if len(given) not in (1, several):
            raise UserError(
                f"camera.{key}={given}: expected one for all steps or one more than "
                f"camera.milestones={camera.milestones}, got {len(given)}"
            )
    prior = config.prior
    factor = multiple_of(prior)
    shown = f"prior.image_size={prior.image_size}" if prior.image_size else f"camera.sizes={camera.sizes}"
    for size in [prior.image_size] if prior.image_size else camera.sizes:
        if size % factor:
            raise UserError(f"{shown}: expected multiples of {factor} pixels for prior {prior.name}, got {size}")


def _check_scene(config: Config) -> None:
    row, name = SCENES[config.scene.name], config.scene.name
    row.check(config)
    if config.refine:
        _check_choice("refine_with", config.refine_with, tuple(choices("preset")))
    if config.refine and (row.start is not None or not row.posed):
        raise UserError(f"refine=true: expected a field, whose mesh goes on, got scene={name}")
    loss = config.loss
    needs = {
        "perp_neg": ("views", row.posed),
        "lambda_orient": ("normals", "orientation" in row.maps),
        "lambda_border": ("border", "border" in row.maps),
        "lambda_laplacian": ("mesh", "laplacian" in row.maps),
        "lambda_normal_consistency": ("mesh", "normal_consistency" in row.maps),
        "lambda_convex": ("normals", "convex" in row.maps),
    }
    for key, (what, there) in needs.items():
        if getattr(loss, key) and not there:
            raise UserError(f"loss.{key}={getattr(loss, key)}: expected none with scene={name}, which has no {what}")


def _check_prior(config: Config) -> None:
    prior, facts = config.prior, facts_of(config.prior)
    if facts.source == "hub" and not prior.path:
        raise UserError(f"prior={prior.name} needs weights: prior.path=<folder> or prior.path=<owner/name>")
    rows = {name: row.facts for name, row in PRIORS.items()}
    if prior.kind not in ("auto", *facts.kinds):
        several = ", ".join(f"prior={name}" for name, row in rows.items() if len(row.kinds) > 1)
        raise UserError(f"prior.kind={prior.kind}: expected auto with prior {prior.name}; only {several} has a choice")
    if prior.mirror_time and (not facts.labels or on_table(prior)):
        flows = ", ".join(name for name, row in rows.items() if row.labels and row.levels == "straight")
        raise UserError(
            f"prior.mirror_time=true: expected a flow of sd's shape ({flows}, "
            f"or prior=sd with prior.kind=flow), got prior {prior.name}"
        )
    if prior.max_sequence_length is not None and "max_sequence_length" not in facts.reads:
        readers = ", ".join(f"prior={name}" for name, row in rows.items() if "max_sequence_length" in row.reads)
        raise UserError(
            f"prior.max_sequence_length={prior.max_sequence_length}: expected null, only {readers} reads it"
        )
    if "none" not in (prior.storage, prior.quantization):
        raise UserError(f"prior.storage={prior.storage}, prior.quantization={prior.quantization}: expected only one")
    if prior.quantization == "nf4" and (prior.offload or prior.offload_blocks or config.device == "cpu"):
        raise UserError("prior.quantization=nf4: expected prior.offload=false and a CUDA device, as nf4 stays on it")
    if facts.source == "formula" and (prior.vae or {prior.storage, prior.quantization} != {"none"}):
        raise UserError(
            f"prior.vae, prior.storage, prior.quantization: expected none with prior {prior.name}, a formula"
        )
    _check_views(prior)


def _check_views(prior: PriorConfig) -> None:
    if prior.views == "camera" and "camera" not in facts_of(prior).views:
        those = ", ".join(name for name, row in PRIORS.items() if "camera" in row.facts.views)
        raise UserError(
            f"prior.views=camera: expected auto, four or octants; {prior.name} hears words, {those} alone the camera"
        )
    if prior.views == "octants" and not knows_octants(prior):
        raise UserError(
            f"prior.views=octants: expected auto or four; the captions of {prior.name} name four views only"
        )
    own = {view: getattr(prior, f"prompt_{view}") for view in ("side", "front", "back", "overhead")}
    given = [f"prior.prompt_{view}" for view, text in own.items() if text is not None]
    if given and wording(prior) != "four":
        raise UserError(f"{given[0]}: expected prior.views=four, a prompt of its own is for one of SD's four views")


def _check_text(config: Config) -> None:
    needs = config.task in ("sample", "lift") and not config.resume
    if needs and not config.prompt_file and not config.prompt.strip() and not config.allow_empty_prompt:
        raise UserError(
            'the prompt is empty; give one, for example prompt="a red mushroom" '
            "(allow_empty_prompt=true runs without a text)"
        )
    for key, text in (("prompt", config.prompt), *(("edit.prompts", text) for text in config.edit.prompts)):
        if text.startswith("lib:"):
            raise UserError(
                f"{key}={text}: threestudio's library of prompts is not there; give the text itself, for example "
                f'{key}="{text[4:].replace("_", " ")}"'
            )
    if "{prompt}" not in config.prior.view_pattern:
        raise UserError(f"prior.view_pattern={config.prior.view_pattern}: expected {{prompt}} in it")
    if not config.name.strip():
        raise UserError("name is empty: expected the name of a folder")


def _check_other(config: Config) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise UserError(f"device={config.device}: expected auto, cpu, cuda or cuda:<number>")
    level = config.export.threshold
    number = isinstance(level, int | float) and not isinstance(level, bool) and math.isfinite(level)
    if level != "auto" and not number:
        raise UserError(f"export.threshold={level}: expected a number or auto")
    if not config.export.formats:
        raise UserError("export.formats=[]: expected at least one of glb, obj, ply, stl")
    picture = config.export.texture
    size = isinstance(picture, int) and not isinstance(picture, bool) and SMALLEST <= picture <= LARGEST
    if picture not in ("auto", "none") and not size:
        raise UserError(f"export.texture={picture}: expected auto, none, or {SMALLEST} to {LARGEST} texels a side")
    if config.resume and config.weights:
        raise UserError("resume= goes on with a run, weights= starts a new one: give only one of them")
    if config.prompt_file and (config.resume or config.weights):
        raise UserError("prompt_file= begins new runs; resume= and weights= are for one run")
    lookers = config.task in ("export", "evaluate") or (config.task == "lift" and config.mode != "train")
    if lookers and not config.resume:
        what = f"task={config.task}" if config.task != "lift" else f"mode={config.mode}"
        raise UserError(f"{what} needs a finished run: resume=<run folder or checkpoint> or resume=latest")
