"""Diffused gradients: the values stay, the sum stays, a peak becomes a falling one, faces follow their rims.

Seen to fail: one axis left out; weights that do not add up to 1; the values themselves diffused.
"""

from __future__ import annotations

import math

import pytest
import torch

from threestudio_rf.scenes.surface.diffuse import diffused


@pytest.mark.parametrize("channels", [(), (3,)])
def test_values_stay_and_their_gradient_falls_by_e_over_one_length_along_each_axis(channels: tuple[int, ...]) -> None:
    size, length = 31, 1.5
    values = torch.rand(size**3, *channels, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = diffused(values, size, length)
    assert torch.equal(found, values)
    weight = torch.zeros(size, size, size, *channels)
    weight[15, 15, 15] = 1.0
    (found.view(weight.shape) * weight).sum().backward()
    assert values.grad is not None
    grad = values.grad.view(size, size, size, -1)[..., 0]
    assert abs(float(grad.sum()) - 1) < 1e-5
    for step in ((3, 0, 0), (0, 3, 0), (0, 0, 3), (1, 1, 1)):
        share = grad[tuple(15 + k for k in step)] / grad[15, 15, 15]
        assert abs(float(share) - math.exp(-2)) < 1e-5


def test_without_a_length_nothing_changes_and_a_negative_one_is_refused() -> None:
    values = torch.rand(27)
    assert diffused(values, 3, 0.0) is values
    with pytest.raises(ValueError, match="got -1"):
        diffused(values, 3, -1.0)
