"""The hash grid as Triton kernels: features, the gradient of the table and that of the points.

One program per level and block of points. A table of half the precision is read as such and summed in float32; its
gradient is always summed in float32 (double for double points), so it needs no loss scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.scenes import lattice
from threestudio_rf.scenes.kernels.language import blocks, jit, on, tl
from threestudio_rf.scenes.lattice import GridLevel

BLOCK = 256
ROUNDED: dict[str, Any] = {"enable_fp_fusion": False}
"""Products and sums are rounded one by one, as torch does, whatever the release of Triton fuses by itself."""


@dataclass(frozen=True)
class Lattice:
    """The levels as the kernels read them: `sizes` (L, 8) int32 (three multipliers, last cell, offset, size, dense, 0)
    and `numbers` (L, 2) double (scale, shift)."""

    levels: list[GridLevel]
    sizes: Tensor
    numbers: Tensor

    @classmethod
    def of(cls, levels: list[GridLevel], device: torch.device) -> Lattice:
        """The tensors of `levels` on `device`."""
        sizes = [[*level.multipliers, level.last, level.offset, level.size, int(level.dense), 0] for level in levels]
        numbers = [[level.scale, level.shift] for level in levels]
        return cls(
            levels,
            torch.tensor(sizes, dtype=torch.int32, device=device),
            torch.tensor(numbers, dtype=torch.float64, device=device),
        )


@jit
def _cell(
    points: tl.tensor,
    n: tl.tensor,
    axis: tl.constexpr,
    inside: tl.tensor,
    sizes: tl.tensor,
    numbers: tl.tensor,
    level: tl.tensor,
) -> tl.tensor:
    """Products of cell and multiplier for the near vertex, the multiplier, and the position within the cell."""
    x = tl.load(points + n * 3 + axis, mask=inside, other=0.0)
    scaled = x * tl.load(numbers + level * 2) + tl.load(numbers + level * 2 + 1)
    cell = tl.minimum(scaled.to(tl.int32), tl.load(sizes + level * 8 + 3))
    multiplier = tl.load(sizes + level * 8 + axis)
    return cell * multiplier, multiplier, scaled - cell.to(scaled.dtype)


@jit
def _row(a: tl.tensor, b: tl.tensor, c: tl.tensor, sizes: tl.tensor, level: tl.tensor) -> tl.tensor:
    """Row in the table of the vertex whose products are a, b, c; 64 bits, because features multiply it."""
    size = tl.load(sizes + level * 8 + 5)
    dense = a + b + c
    dense = tl.where(dense >= size, dense - size, dense)
    hashed = (a ^ b ^ c) & (size - 1)
    row = tl.where(tl.load(sizes + level * 8 + 6) != 0, dense, hashed) + tl.load(sizes + level * 8 + 4)
    return row.to(tl.int64)


@jit
def _side(fraction: tl.tensor, far: tl.constexpr) -> tl.tensor:
    return fraction if far else 1 - fraction


@jit
def _forward(
    points: tl.tensor,
    table: tl.tensor,
    sizes: tl.tensor,
    numbers: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    F: tl.constexpr,
    PADDED: tl.constexpr,
    B: tl.constexpr,
) -> None:
    level = tl.program_id(1)
    n = tl.program_id(0) * B + tl.arange(0, B)
    inside = n < count
    ax, mx, fx = _cell(points, n, 0, inside, sizes, numbers, level)
    ay, my, fy = _cell(points, n, 1, inside, sizes, numbers, level)
    az, mz, fz = _cell(points, n, 2, inside, sizes, numbers, level)
    f = tl.arange(0, PADDED)
    there = inside[:, None] & (f < F)[None, :]
    total = tl.zeros((B, PADDED), dtype=fx.dtype)
    for corner in tl.static_range(8):
        row = _row(ax + (corner >> 2 & 1) * mx, ay + (corner >> 1 & 1) * my, az + (corner & 1) * mz, sizes, level)
        weight = _side(fx, corner >> 2 & 1) * _side(fy, corner >> 1 & 1) * _side(fz, corner & 1)
        value = tl.load(table + row[:, None] * F + f[None, :], mask=there, other=0.0).to(fx.dtype)
        total += weight[:, None] * value
    place = (level * F + f).to(tl.int64)[None, :] * count + n[:, None]
    tl.store(out + place, total, mask=there)


@jit
def _table_gradient(
    points: tl.tensor,
    grad: tl.tensor,
    sizes: tl.tensor,
    numbers: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    F: tl.constexpr,
    PADDED: tl.constexpr,
    B: tl.constexpr,
) -> None:
    level = tl.program_id(1)
    n = tl.program_id(0) * B + tl.arange(0, B)
    inside = n < count
    ax, mx, fx = _cell(points, n, 0, inside, sizes, numbers, level)
    ay, my, fy = _cell(points, n, 1, inside, sizes, numbers, level)
    az, mz, fz = _cell(points, n, 2, inside, sizes, numbers, level)
    f = tl.arange(0, PADDED)
    there = inside[:, None] & (f < F)[None, :]
    place = (level * F + f).to(tl.int64)[None, :] * count + n[:, None]
    g = tl.load(grad + place, mask=there, other=0.0).to(fx.dtype)
    for corner in tl.static_range(8):
        row = _row(ax + (corner >> 2 & 1) * mx, ay + (corner >> 1 & 1) * my, az + (corner & 1) * mz, sizes, level)
        weight = _side(fx, corner >> 2 & 1) * _side(fy, corner >> 1 & 1) * _side(fz, corner & 1)
        tl.atomic_add(out + row[:, None] * F + f[None, :], weight[:, None] * g, mask=there, sem="relaxed")


@jit
def _point_gradient(
    points: tl.tensor,
    table: tl.tensor,
    grad: tl.tensor,
    sizes: tl.tensor,
    numbers: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    levels: tl.tensor,
    F: tl.constexpr,
    PADDED: tl.constexpr,
    B: tl.constexpr,
) -> None:
    n = tl.program_id(0) * B + tl.arange(0, B)
    inside = n < count
    f = tl.arange(0, PADDED)
    there = inside[:, None] & (f < F)[None, :]
    gx = tl.zeros((B,), dtype=points.dtype.element_ty)
    gy = tl.zeros((B,), dtype=points.dtype.element_ty)
    gz = tl.zeros((B,), dtype=points.dtype.element_ty)
    for level in range(levels):
        ax, mx, fx = _cell(points, n, 0, inside, sizes, numbers, level)
        ay, my, fy = _cell(points, n, 1, inside, sizes, numbers, level)
        az, mz, fz = _cell(points, n, 2, inside, sizes, numbers, level)
        place = (level * F + f).to(tl.int64)[None, :] * count + n[:, None]
        g = tl.load(grad + place, mask=there, other=0.0).to(fx.dtype)
        scale = tl.load(numbers + level * 2)
        for corner in tl.static_range(8):
            row = _row(ax + (corner >> 2 & 1) * mx, ay + (corner >> 1 & 1) * my, az + (corner & 1) * mz, sizes, level)
            value = tl.load(table + row[:, None] * F + f[None, :], mask=there, other=0.0).to(fx.dtype)
            along = tl.sum(value * g, axis=1) * scale
            wx, wy, wz = _side(fx, corner >> 2 & 1), _side(fy, corner >> 1 & 1), _side(fz, corner & 1)
            gx += ((corner >> 1 & 2) - 1) * along * wy * wz
            gy += ((corner & 2) - 1) * along * wx * wz
            gz += ((corner << 1 & 2) - 1) * along * wx * wy
    tl.store(out + n * 3, gx, mask=inside)
    tl.store(out + n * 3 + 1, gy, mask=inside)
    tl.store(out + n * 3 + 2, gz, mask=inside)


class Encode(torch.autograd.Function):
    """Features (levels * features, N) of points (N, 3) in [0, 1] from `table` (features, rows), level-major.

    The table is used row by row: cheapest when its transpose is contiguous. `half` reads a copy of half the precision.
    A derivative that is to be differentiated again is made of plain torch operations.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, grid: Lattice, half: bool) -> Tensor:
        flat = _flat(table, half)
        points = points.contiguous()
        out = torch.empty(len(grid.levels) * len(table), len(points), dtype=points.dtype, device=points.device)
        if len(points):
            with on(points.device):
                _forward[(blocks(len(points), BLOCK), len(grid.levels))](
                    points,
                    flat,
                    grid.sizes,
                    grid.numbers.to(points.dtype),
                    out,
                    len(points),
                    *_widths(table),
                    **ROUNDED,
                )
        ctx.grid, ctx.half = grid, half
        ctx.save_for_backward(table, points)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        table, points = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return *_again(table, points, ctx.grid, grad, wanted), None, None
        grad = grad.contiguous()
        by_table = _by_table(table, points, ctx.grid, grad) if wanted[0] else None
        by_points = _by_points(table, points, ctx.grid, grad, ctx.half) if wanted[1] else None
        return by_table, by_points, None, None


encode: Callable[[Tensor, Tensor, Lattice, bool], Tensor] = Encode.apply


def _widths(table: Tensor) -> tuple[int, int, int]:
    features = len(table)
    return features, 1 << (features - 1).bit_length(), BLOCK


def _flat(table: Tensor, half: bool) -> Tensor:
    rows = table.detach().t()
    return (rows.half() if half else rows).contiguous()


def _by_table(table: Tensor, points: Tensor, grid: Lattice, grad: Tensor) -> Tensor:
    out = torch.zeros(table.shape[1], len(table), dtype=points.dtype, device=table.device)
    if len(points):
        with on(points.device):
            _table_gradient[(blocks(len(points), BLOCK), len(grid.levels))](
                points, grad, grid.sizes, grid.numbers.to(points.dtype), out, len(points), *_widths(table), **ROUNDED
            )
    return out.t().to(table.dtype)


def _by_points(table: Tensor, points: Tensor, grid: Lattice, grad: Tensor, half: bool) -> Tensor:
    out = torch.zeros_like(points)
    if len(points):
        with on(points.device):
            _point_gradient[(blocks(len(points), BLOCK),)](
                points,
                _flat(table, half),
                grad,
                grid.sizes,
                grid.numbers.to(points.dtype),
                out,
                len(points),
                len(grid.levels),
                *_widths(table),
                **ROUNDED,
            )
    return out


def _again(
    table: Tensor, points: Tensor, grid: Lattice, grad: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The same two gradients with a graph."""
    multipliers = grid.sizes[:, :3, None]
    out = lattice.encode(table.to(points.dtype), points.t(), grid.levels, multipliers)
    inputs = [x for x, asked in zip((table, points), wanted, strict=True) if asked]
    found = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
    by_table, by_points = (next(found) if asked else None for asked in wanted)
    return by_table, by_points
