"""Density and colour over an encoding of space, with the density blob that starts every text-to-3D run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from threestudio_rf.scenes.perceptron import Perceptron


@dataclass(frozen=True)
class Bands:
    """Levels of an encoding that join one by one, coarse to fine (threestudio's ProgressiveBandHashGrid): `first` of
    them, each of `width` features, and after step `start` one more every `every` steps. ValueError for less than 1."""

    first: int
    start: int
    every: int
    width: int

    def __post_init__(self) -> None:
        if min(self.first, self.every, self.width) < 1:
            raise ValueError(f"bands: got {self.first}, {self.every}, {self.width}, expected at least 1 each")

    def features(self, step: int) -> int:
        """How many features count at a step: those of the coarse levels come first."""
        return (self.first + max(step - self.start, 0) // self.every) * self.width


class HashGridField(nn.Module):
    """density = density_scale softplus(raw + blob_density (1 - |x| / blob_radius)), rgb = sigmoid; no shading.

    With a scale of 1 it is threestudio's field, whose scenes are about a unit wide. Density is one over a length, so an
    object a third as wide needs three times as much to have edges as crisp: a ray that grazes it is short.

    Points are world coordinates; outside the box [-radius, radius]^3 the density is zero. `out_features` is the number
    of features that `encoding` gives for points (N, 3) in [0, 1]^3. With `bands` those that do not count at the step of
    the last `update` are 0; which do is stored with the parameters. With `bf16` density and colour together come from a
    network in bfloat16, half the memory for the gradient; `density` alone, whose differences are normals, never does.
    """

    def __init__(
        self,
        encoding: nn.Module,
        *,
        out_features: int,
        hidden: int = 64,
        layers: int = 1,
        radius: float = 1.0,
        density_scale: float = 1.0,
        blob_density: float = 10.0,
        blob_radius: float = 0.5,
        bands: Bands | None = None,
        bf16: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(radius, density_scale, blob_radius) <= 0 or layers < 1 or hidden < 1:
            raise ValueError(
                "field needs radius, density_scale, blob_radius > 0 and hidden, layers >= 1, "
                f"got {radius}, {density_scale}, {blob_radius}, {hidden}, {layers}"
            )
        self.encoding = encoding
        self.radius, self.density_scale = radius, density_scale
        self.blob_density, self.blob_radius = blob_density, blob_radius
        self.network = mlp(out_features, hidden, layers, 4, generator)
        self.bands, self.bf16 = bands, bf16
        if bands is not None:
            self.register_buffer("mask", torch.ones(out_features))
            self.mask: Tensor
            self.update(0)

    def update(self, step: int) -> None:
        """Let as many levels count as `bands` say for this step."""
        if self.bands is not None:
            self.mask.copy_(torch.arange(len(self.mask)) < self.bands.features(step))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """What was stored without bands has all levels, and where there are none here all of them count."""
        if self.bands is None:
            state_dict.pop(prefix + "mask", None)
        else:
            state_dict.setdefault(prefix + "mask", torch.ones_like(self.mask))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def raw(self, points: Tensor, *, bf16: bool = False) -> Tensor:
        """Network output (N, 4): raw density, raw rgb."""
        unit = (points + self.radius) / (2 * self.radius)
        features = self.encoding(unit).to(points.dtype)
        features = features if self.bands is None else features * self.mask
        out: Tensor = self.network(features, torch.bfloat16) if bf16 else self.network(features)
        return out

    def activate(self, raw: Tensor, points: Tensor) -> Tensor:
        """Density (N,) of the raw density (N,) at `points` (N, 3)."""
        x, y, z = points.unbind(dim=-1)
        distance = torch.sqrt(x * x + y * y + z * z + 1e-12)
        inside = torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs()) <= self.radius
        blob = self.blob_density * (1 - distance / self.blob_radius)
        return self.density_scale * functional.softplus(raw + blob) * inside

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) at world points (N, 3)."""
        return self.activate(self.raw(points)[:, 0], points)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) and rgb (N, 3) at world points (N, 3)."""
        raw_density, raw_rgb = self.raw(points, bf16=self.bf16).split((1, 3), dim=-1)
        return self.activate(raw_density[:, 0], points), torch.sigmoid(raw_rgb)


def normals_by_differences(
    density: Callable[[Tensor], Tensor], points: Tensor, step: float, radius: float = math.inf
) -> Tensor:
    """Unit normals (N, 3), minus the normalised density gradient, by central differences of six values, exact for
    quadratic densities. Neighbours are held within [-radius, radius], so that a field that ends there has no false
    normals at its border. Where the density is constant the normal is 0."""
    slopes = []
    for axis in range(3):
        shift = torch.zeros(3, dtype=points.dtype, device=points.device).index_fill(0, _axis(axis, points), step)
        ahead, behind = (points + shift).clamp(-radius, radius), (points - shift).clamp(-radius, radius)
        apart = (ahead - behind)[:, axis].clamp(min=1e-3 * step)
        slopes.append((density(behind) - density(ahead)) / apart)
    return functional.normalize(torch.stack(slopes, dim=-1), dim=-1, eps=1e-8)


def _axis(axis: int, points: Tensor) -> Tensor:
    return torch.full((), axis, device=points.device)


def mlp(inputs: int, hidden: int, layers: int, outputs: int, generator: torch.Generator | None) -> Perceptron:
    """ReLU network with `layers` hidden layers and no bias, Kaiming-uniform from `generator`."""
    widths = [inputs, *[hidden] * layers, outputs]
    modules: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(a, b, bias=False)
        with torch.no_grad():
            linear.weight.copy_((torch.rand(b, a, generator=generator) * 2 - 1) * (6 / a) ** 0.5)
        modules += [linear] if i == len(widths) - 2 else [linear, nn.ReLU()]
    return Perceptron(*modules)
