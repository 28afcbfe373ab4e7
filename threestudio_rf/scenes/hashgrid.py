"""Multiresolution hash encoding (Mueller et al. 2022, Instant-NGP) in plain torch, fast on a CPU.

Everything is channel-first, (features, points): gathers and scatters are then flat and one-dimensional, which on a CPU
is an order of magnitude faster than moving rows of two features. Corners are ordered by the bits (x, y, z).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

PRIMES = (1, 2654435761 - 2**32, 805459861)  # Instant-NGP's, as int32: the low bits of a product do not change


class GridLevel(NamedTuple):
    """One resolution: `size` rows from `offset` in the table; dense when every vertex has a row of its own."""

    resolution: int
    offset: int
    size: int
    dense: bool

    @property
    def multipliers(self) -> tuple[int, int, int]:
        edge = self.resolution + 1
        return (1, edge, edge * edge) if self.dense else PRIMES


def plan(levels: int, log2_table: int, base: int, growth: float, dense: bool = True) -> list[GridLevel]:
    """Resolutions floor(base growth^level); a level whose (resolution + 1)^3 vertices fit in 2^log2_table is not hashed
    unless `dense` is False."""
    result: list[GridLevel] = []
    offset = 0
    for level in range(levels):
        resolution = math.floor(base * growth**level + 1e-6)
        vertices = (resolution + 1) ** 3
        fits = dense and vertices <= 2**log2_table
        size = vertices if fits else 2**log2_table
        result.append(GridLevel(resolution, offset, size, fits))
        offset += size
    return result


def corners(points: Tensor, level: GridLevel, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (8, N) int32 of the eight vertices around `points` (3, N), and the position (3, N) within the cell."""
    scaled = points * level.resolution
    cell = scaled.detach().to(torch.int32).clamp_(max=level.resolution - 1)
    fraction = scaled - cell
    both = cell.new_empty(2, *cell.shape)
    torch.mul(cell, multipliers, out=both[0])
    torch.add(both[0], multipliers, out=both[1])
    if level.dense:
        rows = (both[:, None, 0] + both[None, :, 1]).view(4, 1, -1) + both[None, :, 2]
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


class _Encode(torch.autograd.Function):
    """Gather forward, flat scatter backward, in pieces that fit in a cache; the gradient goes to the table only.

    On CUDA, where memory is short and arithmetic is free, the corners are computed again in the backward.
    """

    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, multipliers: Tensor, levels: list[GridLevel]) -> Tensor:  # type: ignore[no-untyped-def]
        channels, count = len(table), points.shape[1]
        out = table.new_empty(len(levels) * channels, count)
        saved: list[Tensor] = []
        for i, level in enumerate(levels):
            for piece in _pieces(count):
                rows, fraction = corners(points[:, piece], level, multipliers[i])
                saved += (rows, fraction)
                for c in range(channels):
                    part = table[c, level.offset : level.offset + level.size]
                    interpolate(part, rows, fraction, out=out[i * channels + c, piece])
        ctx.levels, ctx.shape, ctx.recompute = levels, table.shape, points.is_cuda
        ctx.save_for_backward(*((points, multipliers) if ctx.recompute else saved))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        saved = iter(ctx.saved_tensors)
        points, multipliers = (next(saved), next(saved)) if ctx.recompute else (None, None)
        grad = grad.contiguous()
        out = grad.new_zeros(ctx.shape)
        channels, count = len(out), grad.shape[1]
        for i, level in enumerate(ctx.levels):
            for piece in _pieces(count):
                if points is None or multipliers is None:
                    rows, fraction = next(saved), next(saved)
                else:
                    rows, fraction = corners(points[:, piece], level, multipliers[i])
                weights, flat = corner_weights(fraction), rows.view(-1).long()
                for c in range(channels):
                    part = out[c, level.offset : level.offset + level.size]
                    part.scatter_add_(0, flat, (weights * grad[i * channels + c, piece]).view(-1))
        return out, None, None, None


def _pieces(count: int, size: int = 65536) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


class HashGrid(nn.Module):
    """Points (N, 3) in [0, 1]^3 -> (N, levels * features), level-major; points outside are clamped.

    When `points` require gradients the encoding is differentiable any number of times (slower); otherwise only the
    table gets a gradient. The table starts uniform in +-1e-4. Raises ValueError for impossible sizes.
    """

    def __init__(
        self,
        *,
        levels: int = 16,
        features: int = 2,
        log2_table: int = 19,
        base: int = 16,
        growth: float = 1.447269237440378,
        dense: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(levels, features, log2_table, base) < 1 or growth < 1 or log2_table > 24:
            raise ValueError(
                "hash grid needs levels, features, base >= 1, growth >= 1 and log2_table in 1..24, "
                f"got {levels}, {features}, {base}, {growth}, {log2_table}"
            )
        self.levels = plan(levels, log2_table, base, growth, dense)
        if self.levels[-1].resolution >= 2**20:
            raise ValueError(f"finest resolution must stay below 2^20, got {self.levels[-1].resolution}")
        self.out_features = levels * features
        rows = self.levels[-1].offset + self.levels[-1].size
        self.table = nn.Parameter((torch.rand(features, rows, generator=generator) * 2 - 1) * 1e-4)
        multipliers = torch.tensor([level.multipliers for level in self.levels], dtype=torch.int32)
        self.register_buffer("multipliers", multipliers[:, :, None], persistent=False)
        self.multipliers: Tensor

    def forward(self, points: Tensor) -> Tensor:
        points = points.t().contiguous().clamp(0, 1)
        if not points.requires_grad:
            return _Encode.apply(self.table, points, self.multipliers, self.levels).t()
        features: list[Tensor] = []
        for i, level in enumerate(self.levels):
            rows, fraction = corners(points, level, self.multipliers[i])
            part = self.table[:, level.offset : level.offset + level.size]
            features += [interpolate(channel, rows, fraction) for channel in part]
        return torch.stack(features, dim=-1)


def encoding_backend(choice: str, device: torch.device | str) -> tuple[str, str]:
    """("tinycudann" | "torch", why): tinycudann only on CUDA and only when it imports and one real call works.

    `choice` is "auto", "torch" or "tinycudann"; nothing that fails in the extension is an error. Raises ValueError for
    another choice.
    """
    if choice not in ("auto", "torch", "tinycudann"):
        raise ValueError(f"encoding expects auto, torch or tinycudann, got {choice}")
    if choice == "torch":
        return "torch", "hash grid: torch, as asked for"
    if torch.device(device).type != "cuda":
        return "torch", f"hash grid: torch, because tinycudann needs CUDA and the device is {device}"
    try:
        encoding = _tinycudann(levels=2, features=2, log2_table=14, base=4, growth=1.5, seed=0).to(device)
        features = encoding(torch.rand(128, 3, device=device))
        features.float().sum().backward()
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0][:200]
        return "torch", f"hash grid: torch, because tinycudann fails ({type(error).__name__}: {line})"
    return "tinycudann", "hash grid: tinycudann, a test call on CUDA worked"


def _tinycudann(*, levels: int, features: int, log2_table: int, base: int, growth: float, seed: int) -> nn.Module:
    import tinycudann

    return tinycudann.Encoding(
        n_input_dims=3,
        encoding_config={
            "otype": "HashGrid",
            "n_levels": levels,
            "n_features_per_level": features,
            "log2_hashmap_size": log2_table,
            "base_resolution": base,
            "per_level_scale": growth,
        },
        seed=seed,
    )


def make_encoding(
    backend: str,
    *,
    levels: int = 16,
    features: int = 2,
    log2_table: int = 19,
    base: int = 16,
    growth: float = 1.447269237440378,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> tuple[nn.Module, str]:
    """The encoding that `encoding_backend` chooses, and its line of explanation."""
    name, reason = encoding_backend(backend, device)
    if name == "torch":
        grid = HashGrid(
            levels=levels, features=features, log2_table=log2_table, base=base, growth=growth, generator=generator
        )
        return grid.to(device), reason
    seed = int(torch.randint(2**31, (), generator=generator))
    encoding = _tinycudann(levels=levels, features=features, log2_table=log2_table, base=base, growth=growth, seed=seed)
    return encoding.to(device), reason
