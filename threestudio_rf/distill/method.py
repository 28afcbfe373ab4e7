"""A distillation method is a row of data; one function serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, noise, split
from threestudio_rf.core.guide import cfg
from threestudio_rf.core.level import Schedule, column
from threestudio_rf.distill.guidance import Guidance
from threestudio_rf.distill.noise import random_noise, rev_noise
from threestudio_rf.distill.residual import gradient, surrogate
from threestudio_rf.distill.weights import WEIGHTS

NOISES = ("random", "rev")


@dataclass(frozen=True)
class Method:
    """`space` and `weight` of the residual, `noise` source, guidance `scale` s in uncond + s (cond - uncond).

    For noise "rev": `rev_step` is k (None: 1 - t), `rev_steps` the number of fixed-point steps.
    """

    space: Kind = "flow"
    weight: str = "uniform"
    noise: str = "random"
    scale: float = 100.0
    rev_step: float | None = None
    rev_steps: int = 1

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS or self.noise not in NOISES or self.rev_steps < 0:
            got = (self.weight, self.noise, self.rev_steps)
            raise ValueError(f"weight, noise, rev_steps: got {got}, expected {sorted(WEIGHTS)}, {NOISES}, at least 0")

    def guidance(self, negatives: Mapping[str, Tensor] | None = None) -> Guidance:
        """Classifier-free guidance at `scale`, with Perp-Neg where there are weights (B,) of negative roles."""
        return Guidance(cfg(self.scale), negatives or {})


METHODS: dict[str, Method] = {
    "sds": Method(space="eps", weight="sigma2"),
    "sjc": Method(space="x0"),
    "rfds": Method(),
    "rfds_rev": Method(noise="rev"),
    "rfds_rev_instaflow": Method(noise="rev", rev_step=1.0, scale=50.0),
}


@dataclass(frozen=True)
class Distilled:
    """`loss` has gradient `grad` (B, C, h, w) at the latents. `x0_hat` is the guided estimate, `eps` the noise used.

    `residual_norm` (B,) is the root mean square of weight times residual; `eps_mean`, `eps_var` are those of one
    sample's noise, averaged over the batch. `skipped`: something was not finite, `grad` is zero; leave out the step.
    """

    loss: Tensor
    grad: Tensor
    x0_hat: Tensor
    eps: Tensor
    residual_norm: Tensor
    eps_mean: Tensor
    eps_var: Tensor
    skipped: bool


def distill(
    latents: Tensor,
    predict: Callable[[Tensor, Tensor, Sequence[str]], dict[str, Tensor]],
    t: Tensor,
    *,
    prior_kind: Kind,
    schedule: Schedule,
    method: Method,
    generator: Generator,
    negatives: Mapping[str, Tensor] | None = None,
) -> Distilled:
    """One evaluation for `latents` (B, C, h, w) at times t (B,): gradient = weight(t) residual / M / B.

    `predict(x_t, t, roles)` returns predictions of `prior_kind` for the roles "cond" and, unless the scale is 1,
    "uncond". `negatives` are Perp-Neg's weights (B,) by role; `predict` must know these roles and "uncond". Rev's
    inner call is the prompt alone, without either.

    The scale binds: a scene parameter that colours the whole picture evenly gets the same gradient at any resolution
    and for a repeated batch.
    """
    x0 = latents.detach().float() if latents.dtype in (torch.float16, torch.bfloat16) else latents.detach()
    with torch.no_grad():
        level = schedule(t)
        eps = random_noise(x0, generator=generator)
        if method.noise == "rev":
            step, steps = method.rev_step, method.rev_steps
            eps = rev_noise(x0, eps, t, predict, kind=prior_kind, schedule=schedule, step=step, steps=steps)
        x_t = noise(x0, eps, level)
        guide = method.guidance(negatives)
        predictions = {role: p.to(x0) for role, p in predict(x_t, t, guide.roles).items()}
        r = gradient(x0, x_t, eps, predictions, level, kind=prior_kind, space=method.space, guidance=guide, target=1.0)
        weight = column(WEIGHTS[method.weight](level), x0)
        grad = weight * r / len(x0)
        skipped = not bool(grad.isfinite().all())
        grad = torch.zeros_like(grad) if skipped else grad
        x0_hat, _ = split(prior_kind, guide(predictions), x_t, level)
        norm = (weight * r).flatten(1).square().mean(1).sqrt() * x0[0].numel()
        flat = eps.flatten(1)
    loss = surrogate(latents, grad)
    return Distilled(loss, grad, x0_hat, eps, norm, flat.mean(), flat.var(1, correction=0).mean(), skipped)
