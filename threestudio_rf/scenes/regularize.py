"""Regularisers: scalar functions of a `Rendering`. A mean over an empty set is 0, and stays in the graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from threestudio_rf.scenes.base import Rendering


def sparsity(rendering: Rendering) -> Tensor:
    """mean sqrt(opacity^2 + 0.01): prefers empty space (threestudio)."""
    return torch.sqrt(rendering.opacity.square() + 0.01).mean()


def opaqueness(rendering: Rendering) -> Tensor:
    """Binary cross-entropy of the opacity o with itself, o in [1e-3, 1 - 1e-3]: prefers 0 and 1 (threestudio)."""
    o = rendering.opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * torch.log(o) + (1 - o) * torch.log1p(-o)).mean()


def orientation(rendering: Rendering) -> Tensor:
    """sum sg(w) relu(n . d)^2 / number of pixels with opacity > 0: no normals that face away (Verbin et al. 2022)."""
    penalty = _present(rendering.orientation, "orientation", "render with normals")
    return _mean_over(penalty, rendering.opacity > 0)


def z_variance(rendering: Rendering) -> Tensor:
    """Mean variance of the distance along the ray, over pixels with opacity > 0.5 (HiFA, Zhu et al. 2023)."""
    return _mean_over(_present(rendering.z_variance, "z_variance", "the scene has no depth"), rendering.opacity > 0.5)


def convex(rendering: Rendering) -> Tensor:
    """Minus how much normals turn to the right and upwards, z component of the cross product of neighbours on a picture
    of 8 x 8 (threestudio's SDI, which takes the normals as they are shown: (n + 1) / 2, times opacity)."""
    n = functional.normalize(_present(rendering.normal, "normal", "render with normals"), dim=1)
    small = functional.interpolate((n + 1) / 2 * rendering.opacity, (8, 8), mode="bilinear", align_corners=False)
    right = torch.linalg.cross(small[..., :-1], small[..., 1:], dim=1)[:, 2]
    above = torch.linalg.cross(small[..., 1:, :], small[..., :-1, :], dim=1)[:, 2]
    turned: Tensor = -(right.mean() + above.mean())
    return turned


def border(rendering: Rendering) -> Tensor:
    """Mean opacity of what lies near the border of the scene: keeps the object inside, where it is not cut."""
    return _present(rendering.border, "border", "the scene has no border").mean()


def total_variation(rendering: Rendering) -> Tensor:
    """Mean absolute difference of the rgb of vertical plus of horizontal neighbours."""
    rows, columns = rendering.rgb.diff(dim=-2).abs(), rendering.rgb.diff(dim=-1).abs()
    return rows.sum() / max(rows.numel(), 1) + columns.sum() / max(columns.numel(), 1)


def _present(map_: Tensor | None, name: str, hint: str) -> Tensor:
    if map_ is None:
        raise ValueError(f"the regulariser {name} expects a rendering with the map {name}, got None ({hint})")
    return map_


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0).sum() / chosen.sum().clamp(min=1)


REGULARIZERS: dict[str, Callable[[Rendering], Tensor]] = {
    "sparsity": sparsity,
    "opaqueness": opaqueness,
    "orientation": orientation,
    "z_variance": z_variance,
    "border": border,
    "convex": convex,
    "total_variation": total_variation,
}
