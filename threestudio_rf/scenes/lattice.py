"""The lattice of a multiresolution hash grid: which rows of the table surround a point (Mueller et al. 2022).

Two geometries. "plain": a level of resolution n = floor(base growth^l) has n + 1 vertices a side, vertex i at i / n.
"tcnn", tiny-cuda-nn's own (grid.h): scale s = base growth^l - 1 in float32, vertex i at (i - 0.5) / s, ceil(s) + 1
vertices a side, rows rounded up to a multiple of 8. Its border cells may read a vertex more than there is: that wraps.

Everything is channel-first, (features, points): gathers and scatters are then flat and one-dimensional, which on a CPU
is an order of magnitude faster than moving rows of two features. Corners are ordered by the bits (x, y, z).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

PRIMES = (1, 2654435761 - 2**32, 805459861)  # Instant-NGP's, as int32: the low bits of a product do not change
GEOMETRIES = ("plain", "tcnn")
FINEST = 2**20
"""What the resolution of the finest level stays below: cells are counted in float32."""


class GridLevel(NamedTuple):
    """One resolution: `size` rows from `offset` in the table; dense when every vertex has a row of its own.

    A point x in [0, 1] lies at `scale` x + `shift`, in cells 0 to `last`, between vertices of which `edge` have rows.
    """

    resolution: int
    offset: int
    size: int
    dense: bool
    scale: float
    shift: float
    edge: int
    last: int

    @property
    def multipliers(self) -> tuple[int, int, int]:
        """What the vertex (x, y, z) is multiplied by: strides of a dense level, the primes of the hash otherwise."""
        return (1, self.edge, self.edge * self.edge) if self.dense else PRIMES

    @property
    def beyond(self) -> int:
        """How many rows beyond those of the level the corners of border cells reach; 0 for a hashed level."""
        return max((self.last + 1) * (1 + self.edge + self.edge**2) + 1 - self.size, 0) if self.dense else 0


def plan(
    levels: int, log2_table: int, base: int, growth: float, dense: bool = True, geometry: str = "plain"
) -> list[GridLevel]:
    """The levels of a grid; one whose vertices fit in 2^log2_table is not hashed unless `dense` is False.

    ValueError for another geometry than those of `GEOMETRIES`.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(f"geometry expects {' or '.join(GEOMETRIES)}, got {geometry}")
    result: list[GridLevel] = []
    offset = 0
    for level in range(levels):
        if geometry == "tcnn":
            scale = _tcnn_scale(level, base, growth)
            resolution, shift, last = math.ceil(scale), 0.5, math.floor(scale + 0.5)
        else:
            resolution = math.floor(base * growth**level + 1e-6)
            scale, shift, last = float(resolution), 0.0, resolution - 1
        edge = resolution + 1
        fits = dense and edge**3 <= 2**log2_table
        size = edge**3 if fits else 2**log2_table
        if geometry == "tcnn":
            size = min(-(-size // 8) * 8, 2**log2_table)
        result.append(GridLevel(resolution, offset, size, fits, scale, shift, edge, last))
        offset += size
    return result


def _tcnn_scale(level: int, base: int, growth: float) -> float:
    """exp2f(level log2f(growth)) base - 1 in float32, operation by operation as tiny-cuda-nn's host code."""
    power = 2.0 ** _float32(level * _float32(math.log2(_float32(growth))))
    return _float32(_float32(_float32(power) * base) - 1)


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def corners(points: Tensor, level: GridLevel, multipliers: Tensor, *, wrap: bool = True) -> tuple[Tensor, Tensor]:
    """Rows (8, N) int32 of the eight vertices around `points` (3, N), and the position (3, N) within the cell. Without
    `wrap` rows beyond the level stay what they are."""
    scaled = points * level.scale + level.shift if level.shift else points * level.scale
    cell = scaled.detach().to(torch.int32).clamp_(max=level.last)
    fraction = scaled - cell
    both = cell.new_empty(2, *cell.shape)
    torch.mul(cell, multipliers, out=both[0])
    torch.add(both[0], multipliers, out=both[1])
    if level.dense:
        rows = (both[:, None, 0] + both[None, :, 1]).view(4, 1, -1) + both[None, :, 2]
        if wrap and level.beyond:
            rows = torch.where(rows < level.size, rows, rows - level.size)
    else:
        both.bitwise_and_(level.size - 1)
        rows = (both[:, None, 0] ^ both[None, :, 1]).view(4, 1, -1) ^ both[None, :, 2]
    return rows.view(8, -1), fraction


def interpolate(channel: Tensor, rows: Tensor, fraction: Tensor, out: Tensor | None = None) -> Tensor:
    """Trilinear interpolation (N,) of a feature, `channel` (size,); differentiable by plain autograd without `out`."""
    f = channel.index_select(0, rows.view(-1)).view(4, 2, -1)
    f = torch.lerp(f[:, 0], f[:, 1], fraction[2]).view(2, 2, -1)
    f = torch.lerp(f[:, 0], f[:, 1], fraction[1])
    return torch.lerp(f[0], f[1], fraction[0], out=out)


def corner_weights(fraction: Tensor) -> Tensor:
    """Trilinear weights (8, N) of the corners, from the position (3, N) within the cell."""
    both = torch.stack((1 - fraction, fraction))
    return ((both[:, None, 0] * both[None, :, 1]).view(4, 1, -1) * both[None, :, 2]).view(8, -1)


def encode(table: Tensor, points: Tensor, levels: list[GridLevel], multipliers: Tensor) -> Tensor:
    """Features (levels * features, N) of `points` (3, N) from `table` (features, rows), level-major, by plain autograd:
    differentiable any number of times. `multipliers` are those of the levels, (levels, 3, 1) int32."""
    features: list[Tensor] = []
    for i, level in enumerate(levels):
        rows, fraction = corners(points, level, multipliers[i])
        part = table[:, level.offset : level.offset + level.size]
        features += [interpolate(channel, rows, fraction) for channel in part]
    return torch.stack(features)


@torch.no_grad()
def look_up(table: Tensor, points: Tensor, levels: list[GridLevel], multipliers: Tensor, piece: int = 65536) -> Tensor:
    """`encode` without a gradient: the same numbers, `piece` points at a time, and nothing is kept."""
    channels, count = len(table), points.shape[1]
    out = table.new_empty(len(levels) * channels, count)
    for i, level in enumerate(levels):
        own = table[:, level.offset : level.offset + level.size]
        if level.beyond:
            own = torch.cat((own, own[:, : level.beyond]), dim=1)  # cheaper than to wrap the rows of every point
        for start in range(0, count, piece):
            part = slice(start, start + piece)
            rows, fraction = corners(points[:, part], level, multipliers[i], wrap=False)
            for c in range(channels):
                interpolate(own[c], rows, fraction, out=out[i * channels + c, part])
    return out
