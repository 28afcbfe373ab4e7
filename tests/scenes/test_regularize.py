"""Regularisers by hand. Seen to fail: the 0.01 of sparsity moved out of the root; the second half of the cross-entropy
dropped; the count of orientation over all pixels; > 0.5 turned round; an empty mean left as 0/0; one axis of the total
variation dropped; neighbours of the price of hollows exchanged, or one of its directions dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from threestudio_rf.scenes.base import Rendering
from threestudio_rf.scenes.regularize import (
    REGULARIZERS,
    border,
    convex,
    opaqueness,
    orientation,
    sparsity,
    total_variation,
    z_variance,
)


def rendering(opacity: Tensor, spread: Tensor | None = None, away: Tensor | None = None) -> Rendering:
    return Rendering(opacity.expand(-1, 3, -1, -1), opacity, None, None, away, spread)


def test_sparsity_of_nothing_is_a_tenth() -> None:
    assert float(sparsity(rendering(torch.zeros(3, 1, 2, 5)))) == pytest.approx(0.1)
    assert float(sparsity(rendering(torch.ones(3, 1, 2, 5)))) == pytest.approx(1.01**0.5)


def test_opaqueness_is_the_cross_entropy_of_the_opacity_with_itself() -> None:
    o = torch.tensor([0.0, 1e-4, 0.2, 0.5, 0.999, 1.0]).view(1, 1, 2, 3)
    c = o.clamp(1e-3, 1 - 1e-3)
    assert torch.allclose(opaqueness(rendering(o)), functional.binary_cross_entropy(c, c), atol=1e-6)
    x = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2).requires_grad_()
    opaqueness(rendering(x)).backward()
    assert x.grad is not None and x.grad[..., 0] > 0 > x.grad[..., 1]


def test_orientation_counts_the_pixels_that_show_something() -> None:
    o = torch.tensor([0.0, 0.3, 0.6, 0.0]).view(1, 1, 2, 2)
    away = torch.tensor([0.0, 0.2, 0.4, 0.0]).view(1, 1, 2, 2)
    assert float(orientation(rendering(o, away=away))) == pytest.approx(0.3)


def test_border_is_the_mean_opacity_near_the_border() -> None:
    near = torch.tensor([0.0, 0.2, 0.4, 0.0]).view(1, 1, 2, 2)
    plain = rendering(torch.ones(1, 1, 2, 2))
    assert float(border(plain._replace(border=near))) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="border"):
        border(plain)


def test_z_variance_is_a_mean_over_opaque_pixels() -> None:
    o = torch.tensor([0.1, 0.5, 0.6, 0.9]).view(1, 1, 2, 2)
    spread = torch.tensor([9.0, 8.0, 1.0, 2.0]).view(1, 1, 2, 2)
    assert float(z_variance(rendering(o, spread))) == pytest.approx(1.5)


def test_total_variation_adds_rows_and_columns() -> None:
    rgb = torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]]).expand(2, 3, 2, 3)
    found = total_variation(Rendering(rgb, rgb[:, :1]))
    assert float(found) == pytest.approx((0.5 + 0.5 + 0.5) / 3 + 1 / 4)
    assert float(total_variation(Rendering(rgb[..., :1, :1], rgb[:, :1]))) == 0


@pytest.mark.parametrize("name", REGULARIZERS)
def test_an_empty_picture_costs_a_finite_number_with_a_zero_or_finite_gradient(name: str) -> None:
    x = torch.zeros(2, 1, 3, 4, requires_grad=True)
    value = REGULARIZERS[name](
        rendering(x, spread=x * 2, away=x * 3)._replace(border=x * 4, normal=x.repeat(1, 3, 1, 1))
    )
    value.backward()
    assert value.isfinite() and x.grad is not None and x.grad.isfinite().all()
    if name in ("orientation", "z_variance", "border", "total_variation"):
        assert value == 0


def test_a_broken_pixel_that_does_not_count_does_not_spread() -> None:
    o = torch.tensor([0.1, 0.9]).view(1, 1, 1, 2)
    spread = torch.tensor([float("nan"), 2.0]).view(1, 1, 1, 2)
    assert float(z_variance(rendering(o, spread))) == 2


@pytest.mark.parametrize("name", ["orientation", "z_variance"])
def test_a_missing_map_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*got None"):
        REGULARIZERS[name](rendering(torch.ones(1, 1, 2, 3)))


def test_the_price_of_hollows_is_threestudios() -> None:
    draws = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 3, 16, 24, generator=draws) * 0.3
    opacity = torch.rand(2, 1, 16, 24, generator=draws)
    shown = ((functional.normalize(normal, dim=1) + 1) / 2 * opacity).permute(0, 2, 3, 1)  # its comp_normal, B H W 3
    small = functional.interpolate(shown.permute(0, 3, 1, 2), [8, 8], mode="bilinear", align_corners=False)
    small = small.permute(0, 2, 3, 1)
    wanted = []
    for b in range(2):
        flat = [torch.linalg.cross(small[b, i, j], small[b, i, j + 1])[2] for i in range(8) for j in range(7)]
        tall = [torch.linalg.cross(small[b, i + 1, j], small[b, i, j])[2] for i in range(7) for j in range(8)]
        wanted.append(-(torch.stack(flat).mean() + torch.stack(tall).mean()))
    seen = Rendering(opacity.expand(-1, 3, -1, -1), opacity, None, normal)
    assert convex(seen).item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-4)
    with pytest.raises(ValueError, match="expects a rendering with the map normal"):
        convex(rendering(opacity))
