"""Marching and compositing as Triton kernels: a ray is walked through the occupied cells, its samples are weighed.

Packed samples of ray r are start[r] to start[r + 1]. Marching takes two walks: one counts, one writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.scenes.kernels.language import blocks, jit, on, tl

RAYS, CHUNK = 128, 64


@jit
def _march(
    origins: tl.tensor, directions: tl.tensor, near: tl.tensor, length: tl.tensor, jitter: tl.tensor,
    occupied: tl.tensor, depth: tl.tensor, start: tl.tensor, points: tl.tensor, distance: tl.tensor, place: tl.tensor,
    rays: tl.tensor, n: tl.tensor, radius: tl.tensor, scale: tl.tensor, limit: tl.tensor, slots: tl.tensor,
    WRITE: tl.constexpr, B: tl.constexpr
) -> None:  # fmt: skip
    """Counts the samples of each ray into `start`, or writes them from `start` on: points (M, 3), distance, place."""
    ray = tl.program_id(0) * B + tl.arange(0, B)
    inside = ray < rays
    step = tl.load(length + ray, mask=inside, other=0.0)
    first = tl.load(near + ray, mask=inside, other=0.0) + step * tl.load(jitter + ray, mask=inside, other=0.0)
    ox = tl.load(origins + ray * 3, mask=inside, other=0.0)
    oy = tl.load(origins + ray * 3 + 1, mask=inside, other=0.0)
    oz = tl.load(origins + ray * 3 + 2, mask=inside, other=0.0)
    dx = tl.load(directions + ray * 3, mask=inside, other=0.0)
    dy = tl.load(directions + ray * 3 + 1, mask=inside, other=0.0)
    dz = tl.load(directions + ray * 3 + 2, mask=inside, other=0.0)
    alive = inside & (step > 0)
    before = tl.zeros((B,), dtype=step.dtype)
    count = tl.zeros((B,), dtype=tl.int32)
    begin = tl.zeros((B,), dtype=tl.int64)
    if WRITE:
        begin = tl.load(start + ray, mask=inside, other=0)
    slot = 0
    while (slot < slots) & (tl.max(alive.to(tl.int32), axis=0) > 0):
        t = slot * step + first
        x = tl.minimum(tl.maximum(((ox + radius) * scale + dx * scale * t).to(tl.int32), 0), n - 1)
        y = tl.minimum(tl.maximum(((oy + radius) * scale + dy * scale * t).to(tl.int32), 0), n - 1)
        z = tl.minimum(tl.maximum(((oz + radius) * scale + dz * scale * t).to(tl.int32), 0), n - 1)
        cell = (x * n + y) * n + z
        kept = alive & (tl.load(occupied + cell, mask=alive, other=0) != 0)
        if WRITE:
            to = begin + count
            tl.store(points + to * 3, ox + dx * t, mask=kept)
            tl.store(points + to * 3 + 1, oy + dy * t, mask=kept)
            tl.store(points + to * 3 + 2, oz + dz * t, mask=kept)
            tl.store(distance + to, t, mask=kept)
            tl.store(place + to, ray.to(tl.int64) * slots + slot, mask=kept)
        count += kept.to(tl.int32)
        before += tl.load(depth + cell, mask=alive, other=0.0) * step
        alive = alive & (before < limit)
        slot += 1
    if not WRITE:
        tl.store(start + ray, count.to(tl.int64), mask=inside)


@jit
def _alpha(depth: tl.tensor) -> tl.tensor:
    """1 - exp(-depth), by its series where the difference would cancel."""
    series = depth * (1 - depth / 2 * (1 - depth / 3 * (1 - depth / 4 * (1 - depth / 5 * (1 - depth / 6)))))
    return tl.where(depth < 0.25, series, 1 - tl.exp(-depth))


@jit
def _weigh(depth: tl.tensor, start: tl.tensor, out: tl.tensor, light: tl.tensor, C: tl.constexpr) -> None:
    """Weights exp(-sum of the depths before) (1 - exp(-depth)) of a ray's samples, and what light passes each."""
    ray = tl.program_id(0)
    begin, end = tl.load(start + ray), tl.load(start + ray + 1)
    total = tl.zeros((1,), dtype=depth.dtype.element_ty)
    for chunk in range(begin, end, C):
        i = chunk + tl.arange(0, C)
        inside = i < end
        d = tl.load(depth + i, mask=inside, other=0.0)
        earlier = tl.load(depth + i - 1, mask=inside & (i > begin), other=0.0)
        before = tl.cumsum(earlier, axis=0) + total
        tl.store(out + i, tl.exp(-before) * _alpha(d), mask=inside)
        tl.store(light + i, tl.exp(-before) * tl.exp(-d), mask=inside)
        total += tl.sum(earlier, axis=0)


@jit
def _weigh_gradient(
    start: tl.tensor, weights: tl.tensor, light: tl.tensor, grad: tl.tensor, out: tl.tensor, C: tl.constexpr
) -> None:
    """grad light - sum of grad weight of the samples behind, from the last sample to the first."""
    ray = tl.program_id(0)
    begin, end = tl.load(start + ray), tl.load(start + ray + 1)
    behind = tl.zeros((1,), dtype=weights.dtype.element_ty)
    for chunk in range(0, end - begin, C):
        i = end - 1 - chunk - tl.arange(0, C)
        inside = i >= begin
        further = inside & (i < end - 1)
        next_one = tl.load(grad + i + 1, mask=further, other=0.0) * tl.load(weights + i + 1, mask=further, other=0.0)
        here = tl.load(grad + i, mask=inside, other=0.0) * tl.load(light + i, mask=inside, other=0.0)
        tl.store(out + i, here - tl.cumsum(next_one, axis=0) - behind, mask=inside)
        behind += tl.sum(next_one, axis=0)


@jit
def _sum(
    values: tl.tensor, start: tl.tensor, out: tl.tensor, samples: tl.tensor, rays: tl.tensor, C: tl.constexpr
) -> None:
    """Sums of a channel over the samples of a ray."""
    ray, channel = tl.program_id(0), tl.program_id(1).to(tl.int64)
    begin, end = tl.load(start + ray), tl.load(start + ray + 1)
    total = tl.zeros((C,), dtype=values.dtype.element_ty)
    for chunk in range(begin, end, C):
        i = chunk + tl.arange(0, C)
        total += tl.load(values + channel * samples + i, mask=i < end, other=0.0)
    tl.store(out + channel * rays + ray, tl.sum(total, axis=0))


def walk(
    origins: Tensor,
    directions: Tensor,
    interval: tuple[Tensor, Tensor],
    jitter: Tensor,
    *,
    occupied: Tensor,
    depth: Tensor,
    radius: float,
    slots: int,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """start (R + 1,), points (M, 3), distance (M,) and place (M,) in the dense layout, of rays (R, 3).

    `interval` is where a ray begins and how long each of its `slots` steps is; a length of 0 misses. A ray ends where
    the sum of the cells' `depth` reaches `limit`.
    """
    rays, resolution = len(origins), round(len(occupied) ** (1 / 3))
    start = torch.zeros(rays + 1, dtype=torch.int64, device=origins.device)
    points, distance = origins.new_empty(0, 3), origins.new_empty(0)
    place = start.new_empty(0)
    if rays:
        given = (
            origins.contiguous(),
            directions.contiguous(),
            *(x.contiguous() for x in interval),
            jitter.contiguous(),
        )
        sizes = (rays, resolution, radius, resolution / (2 * radius), limit, slots)
        cells = occupied.view(torch.uint8), depth
        with on(origins.device):
            grid = (blocks(rays, RAYS),)
            _march[grid](*given, *cells, start[1:], points, distance, place, *sizes, WRITE=False, B=RAYS)
            start = start.cumsum(0)
            total = int(start[-1])
            points, distance = origins.new_empty(total, 3), origins.new_empty(total)
            place = start.new_empty(total)
            _march[grid](*given, *cells, start, points, distance, place, *sizes, WRITE=True, B=RAYS)
    return start, points, distance, place


class Weights(torch.autograd.Function):
    """Weights (M,) of packed samples from their optical depths (M,) and the `start` (R + 1,) of each ray."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, start: Tensor) -> Tensor:
        depth = depth.contiguous()
        out, light = torch.empty_like(depth), torch.empty_like(depth)
        if len(depth):
            with on(depth.device):
                _weigh[(len(start) - 1,)](depth, start, out, light, C=CHUNK, num_warps=1)
        ctx.save_for_backward(start, out, light)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        start, weights, light = ctx.saved_tensors
        out = torch.empty_like(weights)
        if len(weights):
            with on(weights.device):
                _weigh_gradient[(len(start) - 1,)](start, weights, light, grad.contiguous(), out, C=CHUNK, num_warps=1)
        return out, None


weigh: Callable[[Tensor, Tensor], Tensor] = Weights.apply


class Sums(torch.autograd.Function):
    """Sums (C, R) of `values` (C, M) over the samples of each ray; always in the same order, unlike atomic adds."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, start: Tensor, ray: Tensor) -> Tensor:
        values = values.contiguous()
        out = values.new_zeros(len(values), len(start) - 1)
        if values.numel():
            with on(values.device):
                _sum[(len(start) - 1, len(values))](
                    values, start, out, values.shape[1], len(start) - 1, C=CHUNK, num_warps=1
                )
        ctx.save_for_backward(ray)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (ray,) = ctx.saved_tensors
        return grad.index_select(1, ray), None, None


add_up: Callable[[Tensor, Tensor, Tensor], Tensor] = Sums.apply
