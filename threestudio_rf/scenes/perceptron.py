"""A small network on many points, in pieces that stay in a processor's cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 8192
"""Points at once: 32 numbers each are 1 MB."""


class Perceptron(nn.Sequential):
    """Linear layers without bias and ReLU between them: (N, inputs) -> (N, outputs).

    On a CPU the points go in pieces, and what a layer hides is computed again in the backward pass: a step of `lift` is
    bound by memory, not by arithmetic. The numbers are those of the layers one by one, to rounding. With a
    `dtype` all pieces are whole: torch keeps a kernel in memory for every number of points that it has multiplied in
    bfloat16, and at one of them, 49,152, it ends the process (2.13, oneDNN).
    """

    def forward(self, points: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Outputs (N, outputs) of points (N, inputs), computed in `dtype` where one is given."""
        weights = [layer.weight for layer in self if isinstance(layer, nn.Linear)]
        if dtype is not None:
            x, weights = points.t().to(dtype), [weight.to(dtype) for weight in weights]
            if points.is_cuda:
                return layers(x, weights).t().to(points.dtype)
            filled = _pieces(nn.functional.pad(x, (0, -len(points) % PIECE)), *weights)
            return filled[:, : len(points)].t().to(points.dtype)
        if points.is_cuda or points.dtype != weights[0].dtype:
            return layers(points.t(), weights).t()
        return _pieces(points.t(), *weights).t()


def layers(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Outputs (outputs, N) of inputs (inputs, N)."""
    for weight in weights[:-1]:
        x = torch.mm(weight, x).relu()
    return torch.mm(weights[-1], x)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        out = x.new_empty(len(weights[-1]), x.shape[1])
        for start in range(0, x.shape[1], PIECE):
            out[:, start : start + PIECE] = layers(x[:, start : start + PIECE], weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient is wanted with a graph of its own
            wanted = [tensor for tensor, need in zip((x, *weights), ctx.needs_input_grad, strict=True) if need]
            found = iter(torch.autograd.grad(layers(x, weights), wanted, grad, create_graph=True))
            return tuple(next(found) if need else None for need in ctx.needs_input_grad)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weights = [
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights
        ]
        for start in range(0, x.shape[1], PIECE):
            piece = slice(start, start + PIECE)
            first = _back(x[:, piece], weights, grad[:, piece], of_weights)
            if of_x is not None:
                torch.mm(weights[0].t(), first, out=of_x[:, piece])
        return of_x, *of_weights


def _back(x: Tensor, weights: Sequence[Tensor], grad: Tensor, sums: Sequence[Tensor]) -> Tensor:
    """Add the weights' gradients of a piece to their sums, of float32 at least; that of the first layer's outputs."""
    inputs = [x]
    for weight in weights[:-1]:
        inputs.append(torch.mm(weight, inputs[-1]).relu_())
    for i in range(len(weights) - 1, 0, -1):
        _add(sums[i], grad, inputs[i].t())
        grad = torch.mm(weights[i].t(), grad).masked_fill_(inputs[i] == 0, 0)
    _add(sums[0], grad, x.t())
    return grad


def _add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add the product a b to a total that may be of a wider dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total.add_(torch.mm(a, b))


_pieces: Callable[..., Tensor] = _Pieces.apply
