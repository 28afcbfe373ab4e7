"""Values over steps against numpy's interpolation, and what must be refused.

Mutations seen to fail: the from_step left out of the share (oracle), `<=` for `<` in Chain (switch at the step), the
clamp at the end removed (clamping), `isinstance(value, float)` of the step removed (float end refused).
"""

from __future__ import annotations

import numpy as np
import pytest

from threestudio_rf.trainer.ramp import Ramp, ramp

STEPS = [0, 1, 99, 100, 101, 2500, 4999, 5000, 5001, 9000, 10000, 20000]


@pytest.mark.parametrize(
    ("given", "x", "y"),
    [
        ([0.98, 0.5, 5000], [0, 5000], [0.98, 0.5]),
        ([100, 2.0, 9.0, 5000], [100, 5000], [2.0, 9.0]),
        ([100, 1.0, 3.0, 5000, 0.5, 10000], [100, 5000, 10000], [1.0, 3.0, 0.5]),
        ([0, 0.0, 1.0, 100, 1.0, 5000, 4.0, 10000], [0, 100, 5000, 10000], [0.0, 1.0, 1.0, 4.0]),
    ],
)
def test_every_list_form_is_the_interpolation_of_its_corners(given, x, y):
    value = ramp(given)
    assert [value(step) for step in STEPS] == pytest.approx(np.interp(STEPS, x, y).tolist(), abs=1e-12)
    assert value.corners[0] == (x[0], y[0]) and value.corners[-1] == (x[-1], y[-1])


def test_a_number_is_constant():
    assert [ramp(0.3)(step) for step in (0, 10**6)] == [0.3, 0.3]
    assert ramp(7)(5) == 7.0


def test_a_ramp_of_one_step_is_a_switch_at_its_first_step():
    value = ramp([5000, 0.98, 0.7, 5001])
    assert [value(4999), value(5000), value(5001)] == pytest.approx([0.98, 0.98, 0.7])


def test_the_value_is_clamped_at_both_ends():
    value = Ramp(2.0, 4.0, 10, 20)
    assert [value(-5), value(0), value(30), value(10**9)] == [2.0, 2.0, 4.0, 4.0]


def test_exp_goes_by_equal_factors():
    value = ramp([0.01, 1.0, 100, "exp"])
    assert value(50) == pytest.approx(0.1)
    assert value(75) / value(50) == pytest.approx(value(50) / value(25))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.98, 0.5, 5000.0], "whole number.*epochs"),
        ([0, 0.98, 0.5, 0.3], "whole number.*epochs"),
        (True, "finite number"),
        ([0, True, 0.5, 100], "finite number"),
        ([0, 0.1, 0.5, True], "whole number"),
        ("abc", "finite number"),
        ([1.0], "expected a number"),
        ([0, 1.0, 2.0, 100, 3.0], "expected a number"),
        ([100, 1.0, 2.0, 100], "end after it begins"),
        ([0, 1.0, 2.0, 100, 3.0, 50], "end after it begins"),
        ([0, float("nan"), 1.0, 10], "finite"),
        ([0, 0.0, 1.0, 10, "exp"], "positive"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_was_given(given, message):
    with pytest.raises(ValueError, match=message):
        ramp(given)
