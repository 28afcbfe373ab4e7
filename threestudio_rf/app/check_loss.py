"""Settings of the loss that cannot work together, found before any model is loaded."""

from __future__ import annotations

import math

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings_loss import LossConfig
from threestudio_rf.trainer.ramp import ramp


def check_loss(loss: LossConfig) -> None:
    """Raises UserError for the first combination that cannot work."""
    _check_window(loss)
    _check_perp_neg(loss)


def _check_window(loss: LossConfig) -> None:
    low, high = ramp(loss.t_min), ramp(loss.t_max)
    steps = sorted({0, *(step for step, _ in low.corners + high.corners)})
    for step in steps:
        if low(step) > high(step):
            raise UserError(
                f"loss.t_min={loss.t_min}, loss.t_max={loss.t_max}: expected t_min at most t_max, "
                f"got {low(step):g} > {high(step):g} at step {step}"
            )
    if loss.space == "eps" and high(0) >= 1:
        raise UserError("loss.t_max=1: expected below 1 with loss.space=eps, where the level has no picture left")


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
