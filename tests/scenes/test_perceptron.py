"""A network in pieces is the network.

Seen to fail: the last piece left out; the first layer's gradient not passed on; a ReLU that passes what it stopped.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from threestudio_rf.scenes import perceptron
from threestudio_rf.scenes.field import mlp


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_pieces_give_what_the_layers_give(monkeypatch: pytest.MonkeyPatch, layers: int, count: int) -> None:
    monkeypatch.setattr(perceptron, "PIECE", 8)
    g = torch.Generator().manual_seed(0)
    network = mlp(6, 5, layers, 4, g).double()
    x = torch.randn(count, 6, generator=g, dtype=torch.float64).requires_grad_()
    grad = torch.randn(count, 4, generator=g, dtype=torch.float64)
    found, expected = network(x), nn.Sequential(*network)(x)
    torch.testing.assert_close(found, expected)
    wanted = [x, *network.parameters()]
    ours, theirs = (torch.autograd.grad(out, wanted, grad, retain_graph=True) for out in (found, expected))
    torch.testing.assert_close(ours, theirs)
    for out in (found, expected):
        (first,) = torch.autograd.grad(out, x, grad, create_graph=True)
        theirs = ours
        ours = torch.autograd.grad(first.square().sum(), list(network.parameters()), allow_unused=True)
    torch.testing.assert_close(ours[0], theirs[0])


def test_a_network_whose_weights_are_fixed_still_passes_the_gradient_on() -> None:
    network, x = mlp(3, 4, 1, 2, torch.Generator().manual_seed(0)).requires_grad_(False), torch.rand(5, 3)
    x.requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
