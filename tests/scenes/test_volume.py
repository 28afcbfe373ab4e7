"""Weights against nerfacc's dense functions and against a loop over the definition.

Seen to fail: the sum before a sample replaced by the sum after it; alpha without its minus; packed cells shifted;
rgb transposed; depth not divided by opacity; variance around 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio_rf.scenes.volume import Samples, accumulate, alphas, composite, packed_weights, weights

RAYS, SLOTS = 5, 7


def scene(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(RAYS, SLOTS, generator=g) * 5, torch.rand(RAYS, SLOTS, generator=g) * 0.4 + 0.05


def packed(keep: Tensor, length: Tensor) -> Samples:
    cell = keep.view(-1).nonzero()[:, 0]
    ray = cell // SLOTS
    t = (torch.arange(SLOTS) * 0.3 + 1).expand(RAYS, SLOTS).reshape(-1)[cell]
    return Samples(torch.zeros(len(cell), 3), t, length.reshape(-1)[cell], ray, cell, RAYS, SLOTS)


def test_weights_equal_the_loop_over_their_definition() -> None:
    density, length = scene()
    found = weights(density, length)
    for r in range(RAYS):
        light = 1.0
        for s in range(SLOTS):
            alpha = 1 - math.exp(-float(density[r, s] * length[r, s]))
            assert abs(float(found[r, s]) - light * alpha) < 1e-6
            assert abs(float(alphas(density, length)[r, s]) - alpha) < 1e-6
            light *= 1 - alpha


def test_weights_and_their_gradient_equal_nerfacc() -> None:
    from nerfacc import render_weight_from_density

    density, length = scene()
    ends = length.cumsum(dim=-1)
    results = []
    for ours in (True, False):
        x = density.clone().requires_grad_()
        w = weights(x, length) if ours else render_weight_from_density(ends - length, ends, x)[0]
        (w * torch.arange(SLOTS)).sum().backward()
        results.append((w.detach(), x.grad))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-5)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)  # type: ignore[arg-type]


def test_weights_sum_to_the_opacity_of_the_whole_ray() -> None:
    density, length = scene()
    assert torch.allclose(weights(density, length).sum(-1), alphas((density * length).sum(-1), torch.ones(RAYS)))


def test_extreme_densities_give_finite_weights_and_gradients() -> None:
    density = torch.tensor([[0.0, 1.0, 1e12, 1e-30, 1e12]], requires_grad=True)
    w = weights(density, torch.full((1, 5), 0.5))
    assert torch.allclose(w[0], torch.tensor([0, 1 - math.exp(-0.5), math.exp(-0.5), 0, 0]), atol=1e-6)
    w.square().sum().backward()
    assert density.grad is not None and density.grad.isfinite().all()


def test_packed_samples_with_gaps_weigh_as_zeros_in_the_dense_layout() -> None:
    density, length = scene()
    keep = torch.rand(RAYS, SLOTS, generator=torch.Generator().manual_seed(3)) > 0.4
    keep[2] = False
    samples = packed(keep, length)
    found = packed_weights(density[keep], samples)
    assert torch.allclose(found, weights(density * keep, length)[keep], atol=1e-6)
    assert torch.allclose(
        accumulate(found[None], samples)[0], (weights(density * keep, length) * keep).sum(-1), atol=1e-6
    )


def test_compositing_equals_sums_over_the_dense_layout() -> None:
    density, length = scene(1)
    keep = torch.ones(RAYS, SLOTS, dtype=torch.bool)
    keep[3] = False
    keep[1, 2:5] = False
    samples = packed(keep, length)
    rgb = torch.rand(RAYS, SLOTS, 3)
    colour, opacity, depth, variance = composite(packed_weights(density[keep], samples), rgb[keep], samples)
    w = weights(density * keep, length)
    t = torch.arange(SLOTS) * 0.3 + 1
    assert torch.allclose(colour.T, (w[..., None] * rgb).sum(1), atol=1e-6)
    assert torch.allclose(opacity, w.sum(1), atol=1e-6)
    mean = (w * t).sum(1) / w.sum(1).clamp(min=1e-6)
    spread = (w * (t - mean[:, None]) ** 2).sum(1) / w.sum(1).clamp(min=1e-6)
    assert torch.allclose(depth, mean, atol=1e-5) and torch.allclose(variance, spread, atol=1e-5)
    assert opacity[3] == depth[3] == variance[3] == 0


def test_compositing_has_the_gradient_of_finite_differences() -> None:
    keep = torch.rand(RAYS, SLOTS, generator=torch.Generator().manual_seed(3)) > 0.3
    density, length = (x.double() for x in scene(2))
    samples = packed(keep, length)
    samples = samples._replace(distance=samples.distance.double())

    def render(density: Tensor, rgb: Tensor) -> tuple[Tensor, ...]:
        return composite(packed_weights(density, samples), rgb, samples)

    rgb = torch.rand(int(keep.sum()), 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(render, (density[keep].requires_grad_(), rgb))


def test_no_samples_composite_to_nothing_and_stay_in_the_graph() -> None:
    samples = packed(torch.zeros(RAYS, SLOTS, dtype=torch.bool), torch.ones(RAYS, SLOTS))
    density, rgb = torch.zeros(0, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    colour, opacity, depth, variance = composite(packed_weights(density, samples), rgb, samples)
    (colour.sum() + opacity.sum() + depth.sum() + variance.sum()).backward()
    assert opacity.abs().sum() == 0 and density.grad is not None and rgb.grad is not None
