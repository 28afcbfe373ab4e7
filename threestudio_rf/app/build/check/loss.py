"""Settings of the loss that cannot work together, or with this prior, found before any model is loaded."""

from __future__ import annotations

import math

import torch

from threestudio_rf.app.build.method import method_of, role_patterns
from threestudio_rf.app.build.prior import facts_of, on_table
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.loss import LossConfig
from threestudio_rf.priors.twin import NAME as TWIN
from threestudio_rf.trainer.ramp import ramp

TABLE_ENTRIES = 1000
"""Entries of a prior's table of levels, whose first is the least noise that it knows."""

MIDDLE = torch.tensor([0.5])


def check_loss(config: Config) -> None:
    """Raises UserError for the first combination that cannot work."""
    loss = config.loss
    _check_window(loss)
    _check_perp_neg(loss)
    _check_method(loss)
    if config.task == "lift":
        _check_range(config)
        _check_twin(config)
        if not config.resume:
            _check_roles(config)


def _check_window(loss: LossConfig) -> None:
    low, high = ramp(loss.t_min), ramp(loss.t_max)
    steps = sorted({0, *(step for step, _ in low.corners + high.corners)})
    for step in steps:
        if low(step) > high(step):
            raise UserError(
                f"loss.t_min={loss.t_min}, loss.t_max={loss.t_max}: expected t_min at most t_max, "
                f"got {low(step):g} > {high(step):g} at step {step}"
            )
    ends = {"loss.space=eps": loss.space == "eps", "loss.weight=sigma_over_alpha": loss.weight == "sigma_over_alpha"}
    for shown, needs_picture in ends.items():
        if needs_picture and any(high(step) >= 1 for step in steps):
            raise UserError(
                f"loss.t_max={loss.t_max}: expected below 1 with {shown}, where the level has no picture left"
            )
    m1, m2, s1, s2 = loss.t_bump
    if m2 > m1 or min(s1, s2) <= 0:
        raise UserError(f"loss.t_bump={loss.t_bump}: expected m1, m2, s1, s2 with m2 at most m1, s1 and s2 above 0")


def _check_perp_neg(loss: LossConfig) -> None:
    if not loss.perp_neg:
        return
    if loss.scale == 0:
        raise UserError("loss.perp_neg=true, loss.scale=0: expected a scale above 0, where the prompt has a say")
    curves = {"fs": loss.perp_neg_f_fs, "sf": loss.perp_neg_f_sf, "fsb": loss.perp_neg_f_fsb, "sb": loss.perp_neg_f_sb}
    for name, (a, b, c) in curves.items():
        lowest = min(a + c, a * math.exp(-b) + c)
        if lowest < 0:
            raise UserError(
                f"loss.perp_neg_f_{name}={[a, b, c]}: expected a exp(-b r) + c of at least 0 for r from 0 to 1, "
                f"got {lowest:.4g}, which would pull towards that view instead of pushing away"
            )


def _check_method(loss: LossConfig) -> None:
    if loss.scale == 0:
        raise UserError("loss.scale=0: expected above 0, where the prompt has a say")
    second = [key for key in ("stage_two_noise", "stage_two_combiner") if getattr(loss, key)]
    if (loss.stage_two is None) != (not second):
        raise UserError(
            f"loss.stage_two={loss.stage_two}, {', '.join(second) or 'no second stage'}: expected both, the share of "
            "the run and loss.stage_two_noise or loss.stage_two_combiner, or neither"
        )
    try:
        method = method_of(loss)
    except ValueError as error:
        raise UserError(f"loss.{error}") from None
    if loss.perp_neg and not any(
        "cond" in method.at(share).guidance(MIDDLE, progress=share).roles for share in (0.0, 1.0)
    ):
        raise UserError(f"loss.perp_neg=true: loss.combiner={loss.combiner} has no part of the prompt alone to bend")


def _check_range(config: Config) -> None:
    prior, low = config.prior, ramp(config.loss.t_min)
    if not on_table(prior):
        return
    lowest = min(value for _, value in low.corners)
    if lowest < 1 / TABLE_ENTRIES:
        raise UserError(
            f"loss.t_min={config.loss.t_min}: expected at least {1 / TABLE_ENTRIES} with prior {prior.name}, whose "
            f"table begins there, got {lowest:g}"
        )


def _check_roles(config: Config) -> None:
    for role, text in role_patterns(config).items():
        if role == "neg" and not text.strip():
            raise UserError(
                f"loss.combiner={config.loss.combiner} pushes away from a negative prompt, and there is none: give "
                "negative_prompt= or loss.neg_prompt="
            )
        if role in ("target", "artifact") and "{prompt}" not in text:
            raise UserError(f"loss.{role}_prompt={text}: expected {{prompt}} in it, for the combiner bridge")


def _check_twin(config: Config) -> None:
    prior = config.prior
    if TWIN not in method_of(config.loss).roles:
        return
    owner = f"loss.combiner={config.loss.combiner}"
    wanted = f"expected a network whose weights are kept as they are, for the twin of {owner} to share"
    if facts_of(prior).source == "formula":
        raise UserError(f"prior={prior.name} is a formula: {wanted}")
    if (prior.storage, prior.quantization) != ("none", "none"):
        raise UserError(f"prior.storage={prior.storage}, prior.quantization={prior.quantization}: {wanted}")
    if prior.offload_blocks:
        raise UserError(f"prior.offload_blocks={prior.offload_blocks}: expected 0 with {owner}, whose twin learns")
    if prior.dtype == "fp16":
        raise UserError(f"prior.dtype=fp16: expected fp32 or bf16 with {owner}, whose twin learns in it")
