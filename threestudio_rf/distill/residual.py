"""The one residual of score distillation, and how it enters the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, sign, split
from threestudio_rf.core.level import Level, column
from threestudio_rf.distill.guidance import Guidance


def gradient(
    x0: Tensor,
    x_t: Tensor,
    eps: Tensor,
    predictions: Mapping[str, Tensor],
    level: Level,
    *,
    kind: Kind,
    space: Kind,
    guidance: Guidance,
    target: float,
) -> Tensor:
    """sign (guidance(p(x_t)) - target p(x0, eps)) / M with p in `space`; all tensors (B, C, h, w).

    `predictions` by role are of `kind`; M is the number of elements of one latent. The caller multiplies w(t) and
    divides by B. With target 1 it descends in every space: the sign is -1 for x0, whose difference ascends.
    """
    asked = {role: p for role, p in predictions.items() if role in guidance.roles}
    guided = guidance({role: join(space, *split(kind, p, x_t, level), level) for role, p in asked.items()})
    residual = guided - target * join(space, x0, eps, level)
    return sign(space) * residual / x0[0].numel()


def bounded(residual: Tensor, c: float) -> Tensor:
    """r / sqrt(mean r^2 + c^2) per sample, r (B, ...): the gradient of the pseudo-Huber distance sqrt(mean r^2 + c^2),
    with which Score Implicit Matching (Luo et al. 2024, arXiv 2410.16794) compares two scores. With c = 0 every sample
    has length 1, and a residual of 0 stays 0."""
    length = (residual.flatten(1).square().mean(1) + c**2).sqrt()
    return residual / column(torch.where(length > 0, length, 1), residual)


class _Inject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return 0.5 * latents.numel() * (grad.float() ** 2).sum()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return outputs[0].to(grad) * grad, None


_inject: Callable[[Tensor, Tensor], Tensor] = _Inject.apply


def surrogate(latents: Tensor, grad: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `latents` is `grad`, exactly and whatever `latents` hold.

    Its value is 1/2 B M |grad|^2, for grad = w r / M / B half the mean square of w r: alike at every resolution and
    batch size. It differs from a usual loss in that the network's part is constant.
    """
    if latents.shape != grad.shape:
        raise ValueError(f"grad: got {tuple(grad.shape)}, expected {tuple(latents.shape)}")
    return _inject(latents, grad.detach().to(latents))
