"""Multiresolution hash encoding (Mueller et al. 2022, Instant-NGP): plain torch, fast on a CPU; Triton; tinycudann."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from threestudio_rf.scenes.kernels.available import INTERPRETED, unavailable
from threestudio_rf.scenes.lattice import (
    FINEST,
    GEOMETRIES,
    GridLevel,
    corner_weights,
    corners,
    encode,
    interpolate,
    look_up,
    plan,
)


class _Encode(torch.autograd.Function):
    """Gather forward, flat sums backward, in pieces that fit in a cache; the gradient goes to the table only.

    On CUDA, where memory is short and arithmetic is free, the corners are computed again in the backward.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, points: Tensor, multipliers: Tensor, levels: list[GridLevel]) -> Tensor:
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        saved = iter(ctx.saved_tensors)
        points, multipliers = (next(saved), next(saved)) if ctx.recompute else (None, None)
        grad = grad.contiguous()
        pairs = ctx.shape[0] == 2 and points is None  # a complex number carries both features: half as many look-ups
        if pairs:
            grad = torch.complex(grad[0::2], grad[1::2])
        out = grad.new_zeros((1, ctx.shape[1]) if pairs else ctx.shape)
        channels, count = len(out), grad.shape[1]
        for i, level in enumerate(ctx.levels):
            for piece in _pieces(count):
                if points is None or multipliers is None:
                    rows, fraction = next(saved), next(saved)
                else:
                    rows, fraction = corners(points[:, piece], level, multipliers[i])
                weights, flat = corner_weights(fraction), rows.view(-1)
                for c in range(channels):
                    part = out[c, level.offset : level.offset + level.size]
                    part.index_add_(0, flat, (weights * grad[i * channels + c, piece]).view(-1))
        return torch.view_as_real(out[0]).t().contiguous() if pairs else out, None, None, None


_encode: Callable[[Tensor, Tensor, Tensor, list[GridLevel]], Tensor] = _Encode.apply


def _pieces(count: int, size: int = 16384) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


BACKENDS = {
    "auto": ("tinycudann", "triton"),
    "triton": ("triton",),
    "tinycudann": ("tinycudann", "triton"),
    "torch": (),
}
"""What is tried for a choice, in this order, before torch."""


class HashGrid(nn.Module):
    """Points (N, 3) in [0, 1]^3 -> (N, levels * features), level-major; points outside are clamped.

    When `points` require gradients the encoding is differentiable any number of times (slower); otherwise only the
    table gets a gradient. The table, (features, rows), starts uniform in +-1e-4. `backend` is what computes: "torch",
    "triton" or "tinycudann" (geometry "tcnn" only); `half` lets Triton read the table in half precision, as tinycudann
    always does. The geometry (`lattice.plan`) is stored with the table: what one backend made opens with every other.
    Raises ValueError for impossible sizes.
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
        geometry: str = "plain",
        backend: str = "torch",
        half: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(levels, features, log2_table, base) < 1 or growth < 1 or log2_table > 24:
            raise ValueError(
                "hash grid needs levels, features, base >= 1, growth >= 1 and log2_table in 1..24, "
                f"got {levels}, {features}, {base}, {growth}, {log2_table}"
            )
        self._sizes = levels, log2_table, base, growth, dense
        self.backend, self.reads_half = backend, half
        self.levels = plan(*self._sizes, geometry)
        if self.levels[-1].resolution >= FINEST:
            raise ValueError(f"finest resolution must stay below 2^20, got {self.levels[-1].resolution}")
        self.out_features = levels * features
        table = (torch.rand(features, self._rows, generator=generator) * 2 - 1) * 1e-4
        self.table = nn.Parameter(table if backend == "torch" else table.t().contiguous().t())
        self.register_buffer("geometry", torch.tensor(GEOMETRIES.index(geometry), dtype=torch.uint8))
        self.register_buffer("multipliers", self._multipliers(), persistent=False)
        self.multipliers: Tensor
        self.geometry: Tensor
        self._lattice: Any = None
        if backend == "tinycudann":
            self._foreign = _tinycudann(levels, features, log2_table, base, growth, expected=self.table.numel())

    @property
    def _rows(self) -> int:
        return self.levels[-1].offset + self.levels[-1].size

    def _multipliers(self) -> Tensor:
        return torch.tensor([level.multipliers for level in self.levels], dtype=torch.int32)[:, :, None]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes over the geometry of what is loaded. What was stored without one is older: a plain table, or the flat
        parameters of tinycudann, row by row."""
        flat = state_dict.pop(prefix + "params", None)
        if flat is not None:
            state_dict[prefix + "table"] = flat.float().view(-1, len(self.table)).t()
        older = torch.tensor(GEOMETRIES.index("plain" if flat is None else "tcnn"), dtype=torch.uint8)
        stored = int(state_dict.setdefault(prefix + "geometry", older))
        if stored != int(self.geometry):
            self._rearrange(GEOMETRIES[stored])
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def _rearrange(self, geometry: str) -> None:
        self.levels, self._lattice = plan(*self._sizes, geometry), None
        self.multipliers = self._multipliers().to(self.table.device)
        rows = self.table.new_zeros(self._rows, len(self.table))
        self.table.data = rows.t().contiguous() if self.backend == "torch" else rows.t()
        if self.backend == "tinycudann":
            self.backend = "torch" if unavailable(self.table.device) else "triton"

    def forward(self, points: Tensor) -> Tensor:
        if self.backend == "triton":
            from threestudio_rf.scenes.kernels.encode import Lattice
            from threestudio_rf.scenes.kernels.encode import encode as kernel

            if self._lattice is None or self._lattice.sizes.device != points.device:
                self._lattice = Lattice.of(self.levels, points.device)
            return kernel(self.table, points.clamp(0, 1), self._lattice, self.reads_half).t()
        if self.backend == "tinycudann":
            self._foreign.params = self.table.t().reshape(-1)
            found: Tensor = self._foreign(points.clamp(0, 1))
            return found
        points = points.t().contiguous().clamp(0, 1)
        if not torch.is_grad_enabled():
            return look_up(self.table, points, self.levels, self.multipliers).t()
        if not points.requires_grad:
            return _encode(self.table, points, self.multipliers, self.levels).t()
        return encode(self.table, points, self.levels, self.multipliers).t()


def encoding_backend(
    choice: str, device: torch.device | str, geometry: str = "tcnn", *, features: int = 2, half: bool = False
) -> tuple[str, str]:
    """("tinycudann" | "triton" | "torch", why): a kernel only where it is installed, runs on `device` and gives what
    torch gives in one real call with so many features, read in `half` precision or not.

    `choice` is "auto", "torch", "triton" or "tinycudann"; nothing that fails in an extension is an error. Raises
    ValueError for another choice.
    """
    if choice not in BACKENDS:
        raise ValueError(f"encoding expects {', '.join(BACKENDS)}, got {choice}")
    if choice == "torch":
        return "torch", "hash grid: torch, as asked for"
    if torch.device(device).type != "cuda" and not (choice == "triton" and INTERPRETED):
        kernels = "kernels need" if choice == "auto" else f"{choice} needs"
        return "torch", f"hash grid: torch, because {kernels} CUDA and the device is {device}"
    failures: list[str] = []
    for name in BACKENDS[choice]:
        failure = _failure(name, device, geometry, features, half)
        if not failure:
            before = f" ({'; '.join(failures)})" if failures else ""
            return name, f"hash grid: {name}, a test call on {device} worked{before}"
        failures.append(failure)
    return "torch", f"hash grid: torch, because {'; '.join(failures)}"


def _failure(name: str, device: torch.device | str, geometry: str, features: int, half: bool) -> str:
    """Why this backend cannot be used on `device`, in one line; empty when a real call gave features and a gradient
    that differ from torch's by less than half precision does."""
    if name == "tinycudann" and geometry != "tcnn":
        return f"tinycudann does not know the geometry {geometry}"
    if name == "triton" and (missing := unavailable(device)):
        return missing
    found = []
    try:
        for backend in (name, "torch"):
            draws = torch.Generator().manual_seed(0)
            grid = HashGrid(
                levels=3,
                features=features,
                log2_table=12,
                base=4,
                growth=2.0,
                geometry=geometry,
                backend=backend,
                half=half,
                generator=draws,
            ).to(device)
            out = grid(torch.rand(128, 3, generator=draws).to(device)).float()
            (gradient,) = torch.autograd.grad(out.sum(), grid.table)
            found.append((out.detach(), gradient))
        same = all((a - b).abs().max() <= 0.01 * b.abs().max() for a, b in zip(*found, strict=True))
    except Exception as error:
        line = (str(error).strip().splitlines() or ["no message"])[0][:200]
        return f"{name} fails ({type(error).__name__}: {line})"
    return "" if same else f"{name} differs from torch in a test call"


def _tinycudann(levels: int, features: int, log2_table: int, base: int, growth: float, *, expected: int) -> nn.Module:
    """tinycudann's encoding without parameters of its own: it is given the table before every call."""
    import tinycudann

    encoding = tinycudann.Encoding(
        n_input_dims=3,
        encoding_config={
            "otype": "HashGrid",
            "n_levels": levels,
            "n_features_per_level": features,
            "log2_hashmap_size": log2_table,
            "base_resolution": base,
            "per_level_scale": growth,
        },
    )
    if encoding.params.numel() != expected:
        raise ValueError(f"tinycudann's table: got {encoding.params.numel()} numbers, expected {expected}")
    del encoding.params
    module: nn.Module = encoding
    return module


def make_encoding(
    backend: str,
    *,
    levels: int = 16,
    features: int = 2,
    log2_table: int = 19,
    base: int = 16,
    growth: float = 1.447269237440378,
    geometry: str = "plain",
    half: bool = False,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> tuple[HashGrid, str]:
    """The encoding that `encoding_backend` chooses, and its line of explanation."""
    name, reason = encoding_backend(backend, device, geometry, features=features, half=half)
    grid = HashGrid(
        levels=levels,
        features=features,
        log2_table=log2_table,
        base=base,
        growth=growth,
        geometry=geometry,
        backend=name,
        half=half,
        generator=generator,
    )
    return grid.to(device), reason
