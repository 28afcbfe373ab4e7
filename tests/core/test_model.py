"""A model asked by role, and its field.

Oracle: the closed-form mixture and the equations of formulas by hand.

Seen to fail: calls counted once per batch; a role asked as "cond"; eps_hat at t = 0 read at the clean level; the bridge
of a table that does not end clean taken as noisy at t = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import join, noise
from threestudio_rf.core.level import DiscreteVP, betas, column, rectified_flow
from threestudio_rf.core.model import Bridge, Field, Model, read

DOUBLE = torch.float64
TABLE = DiscreteVP(betas("scaled_linear", 1000))
X, T = torch.randn(3, 2, 4, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9])


def by_role(x: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
    return {role: torch.sin((2 + len(role)) * x) * column(1 + t, x) for role in roles}


@pytest.mark.parametrize(("kind", "schedule"), [("flow", rectified_flow), ("v", TABLE), ("eps", TABLE), ("x0", TABLE)])
def test_hats_give_the_state_and_the_prediction_back_for_every_role(kind: Any, schedule: Any) -> None:
    model = Model(by_role, kind, schedule)
    found = model.hats(X, T, ["cond", "uncond"])
    level = schedule(T)
    for role, p in by_role(X, T, ["cond", "uncond"]).items():
        assert torch.allclose(noise(*found[role], level), X, atol=1e-6)
        assert torch.allclose(join(kind, *found[role], level), p, atol=1e-6)
    assert model.calls == 2
    model.field(3.0, role="source")(X, T)
    assert model.calls == 4


def test_a_field_of_another_role_is_guided_by_it() -> None:
    model, parts = Model(by_role, "flow", rectified_flow), by_role(X, T, ["target", "uncond"])
    found = model.field(2.5, role="target")(X, T)
    assert torch.allclose(found, parts["uncond"] + 2.5 * (parts["target"] - parts["uncond"]), atol=1e-12)
    assert torch.equal(model.field(role="target")(X, T), parts["target"])


def test_an_estimate_of_a_clean_picture_is_read_at_the_first_entry_of_a_table() -> None:
    p, t = by_role(X, T, ["cond"])["cond"], torch.zeros(3)
    alpha, sigma = (value[0] for value in TABLE.levels(torch.tensor([0])))
    x0_hat, eps_hat = read("x0", p, X, t, TABLE)
    assert torch.allclose(x0_hat, p) and torch.allclose(eps_hat, (X - alpha * p) / sigma, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected a time above 0"):
        read("x0", p, X, t, rectified_flow)


def test_the_straight_field_of_a_flow_is_itself_and_a_bridge_is_clean_at_zero() -> None:
    field = Field(lambda x, t: x, "flow", rectified_flow)
    assert field.straight() is field
    first = DiscreteVP(TABLE.betas, final="first")
    alpha, sigma = Bridge(first)(torch.tensor([0.0, 1.0]))
    assert alpha[0] == 1 and sigma[0] == 0 and sigma[1] == pytest.approx(0.936, abs=1e-3)
    assert torch.allclose(Bridge(first).time_at(sigma[1:]), torch.ones(1))
