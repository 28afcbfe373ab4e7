"""Seen to fail: flat moments taken row by row for the wrong axis."""

from __future__ import annotations

import torch
from torch import nn

from threestudio_rf.trainer.optim import restore


def test_moments_of_a_flat_table_continue_as_those_of_the_table() -> None:
    rows, features = 6, 2
    found = []
    for flat in (True, False):
        table = nn.Parameter(torch.zeros(rows * features) if flat else torch.zeros(features, rows))
        other = nn.Parameter(torch.zeros(3))
        optimiser = torch.optim.AdamW([table, other], lr=0.1)
        for step in range(3):
            drawn = torch.randn(rows, features, generator=torch.Generator().manual_seed(step))
            table.grad = drawn.flatten() if flat else drawn.t().contiguous()
            other.grad = torch.full((3,), float(step))
            optimiser.step()
        found.append((optimiser.state_dict(), table.detach()))
    table = nn.Parameter(torch.zeros(features, rows))
    optimiser = torch.optim.AdamW([table, nn.Parameter(torch.zeros(3))], lr=0.1)
    restore(optimiser, found[0][0])
    moments = optimiser.state_dict()["state"]
    for index in (0, 1):
        for name, value in found[1][0]["state"][index].items():
            assert torch.equal(moments[index][name], value)
    assert torch.equal(found[0][1].view(rows, features).t(), found[1][1])
