"""Guidance as data: which roles a method asks the network for, and how their predictions become one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from threestudio_rf.core.guide import combine, perp_neg
from threestudio_rf.core.transfer import sent


@dataclass(frozen=True)
class Guidance:
    """sum_i weights_i p_i, where Perp-Neg, if there are `negatives`, has replaced p_cond.

    `weights` by role are numbers or (B,), classifier-free guidance being `core.guide.cfg`. `negatives` are Perp-Neg's
    weights (B,) by role: p_cond becomes p_uncond + e_cond + sum_i w_i perp(e_i, e_cond), e relative to p_uncond
    (`core.guide.perp_neg` at scale 1), so under cfg(s) the whole is Perp-Neg at scale s, and every other combination
    has its Perp-Neg form. The projection is a ratio that all parametrizations share: any kind of p gives the same.

    A negative whose weights are all zero, and every one where "cond" has no weight, is left out and costs no call.
    """

    weights: Mapping[str, float | Tensor]
    negatives: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        used = {role: w for role, w in self.negatives.items() if "cond" in self.weights and bool((w != 0).any())}
        object.__setattr__(self, "negatives", used)

    def to(self, device: torch.device) -> Guidance:
        """The same with its weights on `device`."""
        sent_there = {role: sent(w, device) if isinstance(w, Tensor) else w for role, w in self.weights.items()}
        return replace(self, weights=sent_there)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that must be predicted, each once, those of `weights` first."""
        more = ("cond", "uncond", *self.negatives) if self.negatives else ()
        return tuple(dict.fromkeys((*self.weights, *more)))

    def __call__(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """The guided prediction (B, ...) of predictions (B, ...) by role; ValueError when one of `roles` is missing."""
        missing = sorted(set(self.roles) - set(predictions))
        if missing:
            raise ValueError(f"predictions: got {sorted(predictions)}, expected also {missing}")
        if self.negatives:
            p = predictions
            others, weights = [p[role] for role in self.negatives], list(self.negatives.values())
            predictions = {**p, "cond": perp_neg(p["cond"], p["uncond"], others, weights=weights, scale=1.0)}
        return combine(predictions, self.weights)
