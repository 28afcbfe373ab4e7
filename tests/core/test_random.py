"""Random numbers without state."""

from __future__ import annotations

import torch

from threestudio_rf.core.random import generator, normal, uniform


def test_equal_arguments_give_equal_numbers_and_any_other_argument_changes_them() -> None:
    reference = normal((4,), generator(1, 2, "noise"))
    assert torch.equal(reference, normal((4,), generator(1, 2, "noise")))
    for other in (
        generator(0, 2, "noise"),
        generator(1, 3, "noise"),
        generator(1, 2, "time"),
        generator(12, 0, "noise"),
    ):
        assert not torch.equal(reference, normal((4,), other))


def test_a_draw_does_not_touch_the_global_state() -> None:
    before = torch.random.get_rng_state()
    normal((4,), generator(1, 2, "noise"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_neighbouring_steps_are_independent() -> None:
    first = torch.stack([normal((2,), generator(0, step, "noise")) for step in range(2000)])
    assert (first.T.corrcoef() - torch.eye(2)).abs().max() < 0.1
    assert first[:-1, 0].mul(first[1:, 0]).mean().abs() < 0.1
    assert abs(first.mean()) < 0.06 and abs(first.std() - 1) < 0.06


def test_numbers_are_those_of_float32_in_every_dtype() -> None:
    single, double = (normal((3,), generator(0, 0, "a"), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert double.dtype == torch.float64 and torch.equal(single.double(), double)


def test_uniform_numbers_fill_the_unit_interval() -> None:
    u = uniform((20000,), generator(0, 0, "u"))
    assert u.min() >= 0 and u.max() < 1
    assert (u.sort().values - torch.linspace(0, 1, len(u))).abs().max() < 0.02


def test_a_generator_lives_on_the_cpu() -> None:
    assert generator(0, 0, "a").device.type == "cpu"
