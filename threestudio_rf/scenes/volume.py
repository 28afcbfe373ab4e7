"""Volume rendering as pure functions on samples along rays (Max 1995; Mildenhall et al. 2020).

R rays, S slots a ray, M samples that are really there. `Samples` is packed: only what was kept is evaluated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


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
        from threestudio_rf.scenes.kernels.rays import Weights

        return Weights.apply(density * samples.length, samples.start)
    dense = density.new_zeros(samples.rays * samples.slots).index_copy(0, samples.cell, density * samples.length)
    w = weights(dense.view(samples.rays, samples.slots), dense.new_ones(()))
    return w.reshape(-1).index_select(0, samples.cell)


def accumulate(values: Tensor, samples: Samples) -> Tensor:
    """Sums of `values` (C, M) over the samples of each ray, (C, R)."""
    if samples.start is not None:
        from threestudio_rf.scenes.kernels.rays import Sums

        return Sums.apply(values, samples.start, samples.ray)
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
