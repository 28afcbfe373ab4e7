"""FlowChef and SDEdit.

Seen to fail: k before the step instead of behind it, the gradient with the other sign, the mask inverted, no window of
steps -> FlowChef's formula; k applied at 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from threestudio_rf.edit.steer import Steered, chef

DOUBLE = torch.float64


def start() -> torch.Tensor:
    return torch.randn(5, 1, 1, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def test_flowchef_follows_its_formula(make_path: Any, reds: Any) -> None:
    path, settings = make_path(), Steered(steps=8, k=0.3, start=0.25, stop=0.75, scale=2.0)
    times, x, mask = torch.linspace(1, 0, 9, dtype=DOUBLE), start(), torch.tensor([[[[1.0, 0.0]]]], dtype=DOUBLE)
    states = chef(path, x, reds, times, settings, role="target", mask=mask)
    for number, ((t, t_next), state) in enumerate(zip(pairwise(times.tolist()), states, strict=True)):
        u = path.velocity("target", 2.0)(x, torch.full((5,), t, dtype=DOUBLE))
        x0_hat = (x - t * u).requires_grad_()
        loss = 0.5 * ((1 - mask) * (x0_hat - reds)).square().sum()
        (slope,) = torch.autograd.grad(loss, x0_hat)
        x = x + (t_next - t) * u - (0.3 if 2 <= number < 6 else 0.0) * slope
        assert torch.allclose(state.x, x, atol=1e-12) and state.left == 7 - number


def test_without_k_it_is_plain_sampling(make_path: Any, reds: Any, end: Any) -> None:
    path, times = make_path(), torch.linspace(1, 0, 9, dtype=DOUBLE)
    x = start()
    for t, t_next in pairwise(times.tolist()):
        x = x + (t_next - t) * path.velocity("target", 1.0)(x, torch.full((5,), t, dtype=DOUBLE))
    found = end(chef(path, start(), reds, times, Steered(steps=8, scale=1.0), role="target"))
    assert torch.allclose(found, x, atol=1e-12)


def test_full_k_keeps_what_the_mask_does_not_free(make_path: Any, reds: Any, end: Any) -> None:
    path, times = make_path(), torch.linspace(1, 0, 25, dtype=DOUBLE)
    mask = torch.tensor([[[[1.0, 0.0]]]])
    settings = Steered(steps=24, scale=1.0, k=1.0)
    assert torch.allclose(end(chef(path, start(), reds, times, settings, role="target")), reds, atol=1e-12)
    freed = end(chef(path, start(), reds, times, settings, role="target", mask=mask))
    assert torch.allclose(freed[..., 1], reds[..., 1], atol=1e-12)
    assert (freed[..., 0] > 0.2).all(), "the rest is the target's"
