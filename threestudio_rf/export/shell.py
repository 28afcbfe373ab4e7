"""The colour that a surface of a density field shows: what rays composite in the shell around it.

On the surface itself a field already fades, so its colour there is up to a third darker than any picture of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SAMPLES = 16
AHEAD = 0.3
"""The share of the shell's depth that lies outside of the surface."""
COSINES = ((0.3550510257216822, 0.3639172365120455), (0.8449489742783178, 0.6360827634879545))
"""Nodes and weights of Gauss and Jacobi for 2 c dc over [0, 1]: the cosines at which pixels see a surface."""
FAINT = 2e-3


def shell_depth(level: float, radius: float) -> float:
    """How deep under the surface at density `level` rays are followed: four times the length in which a ray of that
    density loses all but 1 / e, at most 0.3 of the scene's radius."""
    return min(0.3 * radius, 4 / level) if level > 0 else 0.3 * radius


def batches(query: Callable[[Tensor], Tensor], points: Tensor, chunk: int, device: torch.device | str) -> Tensor:
    """`query` of points (N, 3), `chunk` at a time on `device`, its values as float32 on the CPU."""
    return torch.cat([query(part.to(device)).detach().float().cpu() for part in points.split(chunk)])


@torch.no_grad()
def shell_colours(
    density: Callable[[Tensor], Tensor],
    rgb: Callable[[Tensor], Tensor],
    points: Tensor,
    normals: Tensor,
    curvature: Tensor,
    *,
    depth: float,
    chunk: int = 1 << 18,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Colours (N, 3) in [0, 1] of surface points (N, 3) with outward unit normals (N, 3) and mean curvatures (N,), of a
    ball 1 / radius: the mean of what rays from all sides composite, without what is behind the object.

    The shell is taken as layers along the normal, from 0.3 `depth` outside to `depth` inside, curved as the surface is:
    a ray that meets it at cosine c crosses the layers at the lengths of `_lengths`, and leaves again where it only
    grazes. Pixels see a surface at c in proportion to c, and the integral of 2 c w(c) dc is a quadrature of two nodes.
    `density` (N,) and `rgb` (N, 3) are asked on `device`; where the shell is empty the colour is that at the point.
    Raises ValueError for colours that are not finite or not (N, 3).
    """
    along = torch.linspace(AHEAD * depth, -depth, SAMPLES)
    size = max(1, chunk // SAMPLES)
    parts = [
        _composite(density, rgb, place, outwards, bend, along, chunk, device)
        for place, outwards, bend in zip(points.split(size), normals.split(size), curvature.split(size), strict=True)
    ]
    colours = torch.cat(parts) if parts else torch.zeros(0, 3)
    if not torch.isfinite(colours).all():
        raise ValueError(f"rgb of {len(points)} points must be finite, got values that are not")
    return colours.clamp(0, 1)


def _composite(
    density: Callable[[Tensor], Tensor],
    rgb: Callable[[Tensor], Tensor],
    points: Tensor,
    normals: Tensor,
    curvature: Tensor,
    along: Tensor,
    chunk: int,
    device: torch.device | str,
) -> Tensor:
    samples = (points[:, None] + along[:, None] * normals[:, None]).reshape(-1, 3)
    solid = batches(density, samples, chunk, device).view(len(points), -1).clamp_min(0)
    weight = sum(share * _weights(solid * _lengths(along, curvature, cosine)) for cosine, share in COSINES)
    assert isinstance(weight, Tensor)
    total = weight.sum(dim=1, keepdim=True)
    middle = along.abs().argmin()
    alone = torch.nn.functional.one_hot(middle, len(along)).to(weight)
    weight = torch.where(total > FAINT, weight / total.clamp_min(FAINT), alone)
    shown = (weight > FAINT).reshape(-1).nonzero()[:, 0]
    colours = batches(rgb, samples[shown], chunk, device)
    if colours.shape != (len(shown), 3):
        raise ValueError(f"rgb of {len(shown)} points must be ({len(shown)}, 3), got {tuple(colours.shape)}")
    share = weight.reshape(-1)[shown]
    owner = shown // len(along)
    mixed = torch.zeros(len(points), 3).index_add_(0, owner, share[:, None] * colours)
    return mixed / torch.zeros(len(points)).index_add_(0, owner, share)[:, None]


def _lengths(along: Tensor, curvature: Tensor, cosine: float) -> Tensor:
    """Lengths (N, S) in layers around the heights `along` (S,), falling, of rays that meet surfaces of mean curvature
    (N,) at `cosine`.

    In a ball of curvature k a ray is at height h where its distance from its middle is sqrt((1 + k h)^2 - 1 + c^2) / k;
    layers below the middle are not reached. Flat, and hollow, layers have their thickness over c.
    """
    step = along[0] - along[1]
    edges = torch.cat((along[:1] + step / 2, along - step / 2)).double()
    k = curvature.double().clamp(min=1e-3 / float(step), max=1 / float(-along[-1]))[:, None]
    middle = ((1 + k * edges).clamp_min(0).square() - 1 + cosine**2).clamp_min(0).sqrt() / k
    return (middle[:, :-1] - middle[:, 1:]).float()


def _weights(depth: Tensor) -> Tensor:
    """Weights (N, S) of layers of optical depth (N, S), the outermost first, on the way in and out again."""
    both = torch.cat((depth, depth.flip(1)), dim=1)
    inwards, outwards = (torch.exp(both - both.cumsum(dim=1)) * -torch.expm1(-both)).chunk(2, dim=1)
    return inwards + outwards.flip(1)
