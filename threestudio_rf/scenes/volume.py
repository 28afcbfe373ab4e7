"""Volume rendering as pure functions on samples along rays (Max 1995; Mildenhall et al. 2020).

R rays, S slots a ray, M samples that are really there. `Samples` is packed: only what was kept is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

T = TypeVar("T")


class Samples(NamedTuple):
    """M samples, ordered by ray and then by distance."""

    points: Tensor  # (M, 3)
    distance: Tensor  # (M,) along the unit direction
    length: Tensor  # (M,) of the interval that the sample stands for
    ray: Tensor  # (M,) int64
    cell: Tensor  # (M,) int64, place in the dense layout of `slots` cells a ray
    rays: int
    slots: int
    start: Tensor | None = None
    """First sample of each ray and the number of samples, (R + 1,) int64, where kernels weigh and sum."""


def alphas(density: Tensor, length: Tensor) -> Tensor:
    """Opacity 1 - exp(-density length) of intervals, any shape."""
    return -torch.expm1(-density * length)


def weights(density: Tensor, length: Tensor) -> Tensor:
    """Weights (R, S): alpha_i prod_{j<i} (1 - alpha_j), from density and interval length (R, S), near to far."""
    depth = density * length
    before = functional.pad(depth.cumsum(dim=-1)[..., :-1], (1, 0))
    return torch.exp(-before) * -torch.expm1(-depth)


def packed_weights(density: Tensor, samples: Samples) -> Tensor:
    """`weights` of packed samples (M,), through the dense layout or by a kernel."""
    if samples.start is not None:
        from threestudio_rf.scenes.kernels.rays import weigh

        return weigh(density * samples.length, samples.start)
    dense = density.new_zeros(samples.rays * samples.slots).index_copy(0, samples.cell, density * samples.length)
    w = weights(dense.view(samples.rays, samples.slots), dense.new_ones(()))
    return w.reshape(-1).index_select(0, samples.cell)


def accumulate(values: Tensor, samples: Samples) -> Tensor:
    """Sums of `values` (C, M) over the samples of each ray, (C, R)."""
    if samples.start is not None:
        from threestudio_rf.scenes.kernels.rays import add_up

        return add_up(values, samples.start, samples.ray)
    index = samples.ray.expand(len(values), -1)
    return values.new_zeros(len(values), samples.rays).scatter_add(1, index, values)


def composite(w: Tensor, rgb: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rgb (3, R) without background, opacity (R,), expected distance (R,) and its variance (R,), from weights (M,) and
    rgb (M, 3). A ray without weight has distance and variance 0."""
    t = samples.distance
    sums = accumulate(torch.cat((w * rgb.t(), torch.stack((w, w * t)))), samples)
    opacity = sums[3]
    norm = opacity.clamp(min=1e-6)
    depth = sums[4] / norm
    spread = accumulate((w * (t - depth.index_select(0, samples.ray)).square())[None], samples)[0]
    return sums[:3], opacity, depth, spread / norm


def parts(work: Callable[[slice], T], count: int, chunk: int) -> Iterator[tuple[slice, T]]:
    """`work` on `count` items, `chunk` at a time; where memory runs out, that part again by half as many and so on."""
    start, chunk = 0, min(chunk, count)
    while start < count:
        part = slice(start, start + chunk)
        try:
            done = work(part)
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
        else:
            yield part, done
            start += chunk
            continue
        torch.cuda.empty_cache()


class _Replayed(torch.autograd.Function):
    """Forward without a graph; backward renders each part once more, with one, and lets it go."""

    @staticmethod
    def forward(ctx: Any, render: Callable[[slice], Tensor], count: int, chunk: int, *parameters: Tensor) -> Tensor:
        ctx.render, ctx.count, ctx.chunk, ctx.parameters = render, count, chunk, parameters
        return torch.cat([maps for _, maps in parts(render, count, chunk)], dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def gradients(part: slice) -> tuple[Tensor | None, ...]:
            with torch.enable_grad():
                maps: Tensor = ctx.render(part)
                learned: tuple[Tensor, ...] = ctx.parameters
                if not maps.requires_grad:
                    return (None,) * len(learned)
                return torch.autograd.grad(maps, learned, grad[:, part], allow_unused=True)

        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        for _, found in parts(gradients, ctx.count, ctx.chunk):
            sums = [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, found, strict=True)]
        return None, None, None, *sums


def part_by_part(
    render: Callable[[slice], Tensor], count: int, chunk: int, parameters: Sequence[Tensor] = ()
) -> Tensor:
    """Maps (C, count) of `count` rays from `render`, which makes those of a slice, in memory that `chunk` bounds.

    The gradient of the `parameters` that `render` depends on is that of the whole graph to rounding, for one more
    rendering; what `render` reads must stay as it is until then. Up to `chunk` rays keep their graph, as long as there
    is memory for it.
    """
    learned = [p for p in parameters if p.requires_grad] if torch.is_grad_enabled() else []
    if learned and count <= chunk:
        try:
            return render(slice(0, count))
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            chunk = count // 2
        torch.cuda.empty_cache()
    replayed: Callable[..., Tensor] = _Replayed.apply
    return replayed(render, count, chunk, *learned)
