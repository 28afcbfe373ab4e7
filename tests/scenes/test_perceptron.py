"""A network in pieces is the network.

Seen to fail: the last piece left out; the first layer's gradient not passed on; a ReLU that passes what it stopped;
points of another dtype not filled up to whole pieces, or what fills them given back.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from threestudio_rf.scenes import perceptron
from threestudio_rf.scenes.field import mlp


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_pieces_give_what_the_layers_give(
    monkeypatch: pytest.MonkeyPatch, layers: int, count: int, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(perceptron, "PIECE", 8)
    g = torch.Generator().manual_seed(0)
    network = mlp(6, 5, layers, 4, g).double()
    x = torch.randn(count, 6, generator=g, dtype=torch.float64).requires_grad_()
    grad = torch.randn(count, 4, generator=g, dtype=torch.float64)
    found, expected = network(x, dtype), nn.Sequential(*network)(x)
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


def test_another_dtype_multiplies_matrices_of_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps a kernel for each: a run whose samples differ in number from step to step took a gigabyte more. At
    49,152 points the product that is a weight's gradient ends the process."""
    sizes: list[int] = []

    def seen(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        sizes.append(x.shape[1])
        return layers(x, weights)

    layers = perceptron.layers
    monkeypatch.setattr(perceptron, "layers", seen)
    network = mlp(3, 4, 1, 2, torch.Generator().manual_seed(0))
    for count in (1, 500, 8191, 8192, 8193, 49152):
        out = network(torch.rand(count, 3), torch.bfloat16)
        assert out.shape == (count, 2)
        out.sum().backward()
    assert sizes == [8192] * (4 + 2 + 6)


def test_gradients_of_many_pieces_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptron, "PIECE", 8)
    network, x = mlp(3, 4, 1, 2, torch.Generator().manual_seed(0)), torch.rand(8, 3).repeat(2000, 1)
    network(x, torch.bfloat16).sum().backward()
    found = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    (2000 * network(x[:8], torch.bfloat16)).sum().backward()
    for ours, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-2, atol=0)
