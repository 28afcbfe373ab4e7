"""Methods of differences: FlowEdit, DDS and DRFS as one loop.

Oracle: each method written down by itself, step by step.

Seen to fail: FlowAlign's guidance from the empty prompt, its pull with the other sign, no source in n_min's start, its
noise the last draw's -> FlowAlign, n_min; branches exchanged, the drift's slope left out or with the other sign, |h|
for h, c of t instead of t' -> the three formulas; one noise for all draws -> draws; the mask inverted -> mask; draws of
law "uniform" in the prior's t -> the window.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.level import column
from threestudio_rf.core.random import generator
from threestudio_rf.edit.delta import Delta, change, posterior
from threestudio_rf.edit.path import Path

DOUBLE = torch.float64


def draws(n: int) -> list[Tensor]:
    """The noises of a run with seed 0."""
    one = generator(0, 0, "e")
    return [torch.randn(5, 1, 1, 2, generator=one).to(DOUBLE) for _ in range(n)]


def falling(path: Path, steps: int = 12, top: float = 0.85) -> Tensor:
    return torch.linspace(top, 0, steps + 1, dtype=DOUBLE)


@pytest.mark.parametrize("name", ["flow", "eps", "v"])
def test_a_linear_drift_is_flowedit(name: str, make_path: Any, reds: Any) -> None:
    path, settings = make_path(name), Delta(steps=12, scale=3.0, scale_source=1.5)
    times = falling(path)
    source, target = path.velocity("source", 1.5), path.velocity("target", 3.0)
    z = reds
    states = list(change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target"))
    for (t, t_next), eps, state in zip(pairwise(times[:, None].expand(-1, 5)), draws(12), states, strict=True):
        now, after = path.level(t).sigma, path.level(t_next).sigma
        x_s = column(1 - now, z) * reds + column(now, z) * eps
        z = z + column(after - now, z) * (target(z + x_s - reds, t) - source(x_s, t))
        assert torch.allclose(state.x, z, atol=1e-11)
    assert len(states) == 12 and path.model.calls == 12 * 8, "4 calls a step, here and in the formula"


@pytest.mark.parametrize("name", ["flow", "eps"])
def test_no_drift_is_dds(name: str, make_path: Any, reds: Any) -> None:
    """Its residual in eps, eps_hat_target - eps_hat_source, is that of the flow times 1 - t'."""
    path, settings = make_path(name), Delta(steps=6, drift="none", rate=2.0, scale=1.0, scale_source=1.0)
    times, x = falling(path, 6), reds
    states = change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target")
    for (t, t_next), eps, state in zip(pairwise(times[:, None].expand(-1, 5)), draws(6), states, strict=True):
        level = path.level(t)
        guesses = []
        for role, picture in (("target", x), ("source", reds)):
            x_t = noise(picture, eps, level)
            guesses.append(split("flow", path.velocity(role, 1.0)(x_t, t), x_t, level)[1])
        h = path.level(t_next).sigma - level.sigma
        x = x + column(2 * h / level.alpha, x) * (guesses[0] - guesses[1])
        assert torch.allclose(state.x, x, atol=1e-11)


@pytest.mark.parametrize("name", ["flow", "eps"])
def test_pds_matches_the_latents_of_its_stochastic_chain(name: str, make_path: Any, reds: Any) -> None:
    """Written out as z of both pictures under the same two noises, on the variance-preserving path: mean and deviation
    by DDPM's numbers of one entry, 500 of 1000 times apart."""
    path = make_path(name)
    settings = Delta(steps=8, law="uniform", drift="none", weight="posterior", t_min=0.2, scale=1.0, scale_source=1.0)
    times, x = falling(path, 8), reds
    states = change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target")
    noises = generator(0, 0, "e")

    def abar(t: Tensor) -> Tensor:
        straight = path.level(t)
        return column(straight.alpha**2 / (straight.alpha**2 + straight.sigma**2), reds)

    for state in states:
        torch.rand(5, generator=noises)
        eps, other = torch.randn(5, 1, 1, 2, generator=noises).to(DOUBLE), torch.randn(5, 1, 1, 2, dtype=DOUBLE)
        t = state.t.to(DOUBLE)
        now, one, before = abar(t), abar(t - 0.001), abar(t - 0.002)
        beta, z = 1 - now / one, []
        for role, picture in (("target", x), ("source", reds)):
            x_t = noise(picture, eps, path.level(t))
            guess = split("flow", path.velocity(role, 1.0)(x_t, state.t), x_t, path.level(t))[0]
            noisy = now.sqrt() * picture + (1 - now).sqrt() * eps
            mu = before.sqrt() * beta / (1 - now) * guess + (1 - beta).sqrt() * (1 - before) / (1 - now) * noisy
            earlier = before.sqrt() * picture + (1 - before).sqrt() * other
            z.append((earlier - mu) / ((1 - before) / (1 - now) * beta).sqrt())
        x = x - (z[0] - z[1]) / 8
        assert torch.allclose(state.x, x, atol=1e-6)
        x = state.x


def test_pds_is_dds_with_a_weight_and_of_times_two_apart_a_pull_to_the_picture(make_path: Any) -> None:
    for name in ("flow", "eps", "v"):
        t = torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE)
        one, other = posterior(make_path(name), t, stride=1)
        assert torch.allclose(one, other, rtol=1e-6)
        level, (identity, matched) = make_path(name).level(t), posterior(make_path(name), t)
        abar = level.alpha**2 / (level.alpha**2 + level.sigma**2)
        assert torch.allclose(identity / matched, (3 + abar) / 2, rtol=0.02)


def test_a_parabola_is_drfs(make_path: Any, reds: Any) -> None:
    path, settings = make_path(), Delta(steps=6, drift="parabola", scale=1.0, scale_source=1.0)
    times, x = falling(path, 6), reds
    states = change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target")
    for (t, t_next), eps, state in zip(pairwise(times.tolist()), draws(6), states, strict=True):
        at, c = torch.full((5,), t, dtype=DOUBLE), t * (1 - t)
        x_g = (1 - t) * x + t * eps + c * (x - reds)
        pair = path.velocity("target", 1.0)(x_g, at) - path.velocity("source", 1.0)((1 - t) * reds + t * eps, at)
        x = x - (t - t_next) * (pair + (1 - (1 - 2 * t)) * (x - reds))
        assert torch.allclose(state.x, x, atol=1e-11)


def test_the_drift_has_the_slope_it_claims(reds: Any) -> None:
    from threestudio_rf.edit.delta import DRIFTS

    t = torch.linspace(0.05, 0.95, 7, dtype=DOUBLE)
    for drift in DRIFTS.values():
        numeric = (drift(t + 1e-6)[0] - drift(t - 1e-6)[0]) / 2e-6
        assert torch.allclose(drift(t)[1], numeric, atol=1e-8)


def test_more_draws_are_averaged_over_different_noises(make_path: Any, reds: Any, end: Any) -> None:
    path, times = make_path(), torch.tensor([0.6, 0.0], dtype=DOUBLE)
    one, two = (Delta(steps=1, scale=0.0, scale_source=1.0, draws=n) for n in (1, 2))
    both = end(change(path, reds, times, two, generator=generator(0, 0, "e"), role="target"))
    noises = generator(0, 0, "e")
    singles = [end(change(path, reds, times, one, generator=noises, role="target")) for _ in range(2)]
    assert torch.allclose(both, (singles[0] + singles[1]) / 2, atol=1e-12)
    assert not torch.allclose(singles[0], singles[1], atol=1e-3)


def test_an_edit_that_asks_for_the_source_changes_nothing(make_path: Any, reds: Any, end: Any) -> None:
    for drift in ("none", "linear", "parabola"):
        path, settings = make_path(), Delta(steps=5, drift=drift).faithful()
        states = change(path, reds, falling(path, 5), settings, generator=generator(0, 0, "e"), role="source")
        assert torch.allclose(end(states), reds, atol=1e-12)


def test_only_the_white_part_of_a_mask_changes(make_path: Any, reds: Any, end: Any) -> None:
    path, mask = make_path(), torch.tensor([[[[1.0, 0.0]]]])
    settings = Delta(steps=8, scale=2.0, scale_source=1.0)
    edited = end(
        change(path, reds, falling(path, 8), settings, generator=generator(0, 0, "e"), role="target", mask=mask)
    )
    assert torch.equal(edited[..., 1], reds[..., 1]) and (edited[..., 0] - reds[..., 0]).min() > 0.5


def test_uniform_times_are_noise_levels_in_the_window_and_fill_the_rate(make_path: Any, reds: Any) -> None:
    path = make_path("v")
    settings = Delta(steps=60, law="uniform", drift="none", t_min=0.3, rate=0.0)
    times = torch.tensor([float(path.time(torch.tensor([0.5]))), 0.0])
    states = list(change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target"))
    levels = torch.stack([path.level(state.t).sigma for state in states])
    assert len(states) == 60 and 0.299 < levels.min() < 0.31 and 0.49 < levels.max() < 0.501
    assert torch.equal(states[-1].x, reds), "at rate 0"


@pytest.mark.parametrize("name", ["flow", "eps", "v"])
def test_flowalign_follows_its_formula(name: str, make_path: Any, reds: Any) -> None:
    path, settings = make_path(name), Delta(steps=6, scale=3.0, scale_source=1.0, base="source", zeta=0.05)
    times, x = falling(path, 6), reds
    source, target = path.velocity("source", 1.0), path.velocity("target", 1.0)
    states = change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target")
    for (t, t_next), eps, state in zip(pairwise(times[:, None].expand(-1, 5)), draws(6), states, strict=True):
        now, after = (column(path.level(at).sigma, x) for at in (t, t_next))
        q = (1 - now) * reds + now * eps
        p = x + q - reds
        v_q, v_n, v_c = source(q, t), source(p, t), target(p, t)
        v_p = v_n + 3.0 * (v_c - v_n)
        x = x + (after - now) * (v_p - v_q) + 0.05 * (q - now * v_q - p + now * v_p)
        assert torch.allclose(state.x, x, atol=1e-11)
    assert path.model.calls == 6 * 6, "3 calls a step, here and in the formula"


def test_flowalign_without_pull_and_guidance_is_flowedit_without_guidance(make_path: Any, reds: Any, end: Any) -> None:
    path, plain = make_path(), Delta(steps=6, scale=1.0, scale_source=1.0)
    aligned = Delta(steps=6, scale=1.0, scale_source=1.0, base="source", zeta=0.0)
    one, other = (
        end(change(path, reds, falling(path, 6), settings, generator=generator(0, 0, "e"), role="target"))
        for settings in (plain, aligned)
    )
    assert torch.equal(one, other)


def test_the_pull_of_flowalign_brings_the_edit_nearer_to_the_picture(make_path: Any, reds: Any, end: Any) -> None:
    path = make_path(std=1.0)
    away = [
        (end(change(path, reds, falling(path, 12), settings, generator=generator(0, 0, "e"), role="target")) - reds)
        for settings in (Delta(steps=12, scale=2.0, scale_source=1.0, base="source", zeta=z) for z in (0.0, 0.05, 0.2))
    ]
    assert away[0].norm() > 1.05 * away[1].norm() > 1.2 * away[2].norm()


@pytest.mark.parametrize("name", ["flow", "eps"])
def test_the_last_steps_of_flowedit_may_sample_the_target(name: str, make_path: Any, reds: Any) -> None:
    path, times = make_path(name), falling(make_path(name), 7)
    settings = Delta(steps=7, scale=3.0, scale_source=1.5, n_min=3)
    found = list(change(path, reds, times, settings, generator=generator(0, 0, "e"), role="target"))
    plain = Delta(steps=7, scale=3.0, scale_source=1.5)
    begun = list(change(path, reds, times, plain, generator=generator(0, 0, "e"), role="target"))[3].x
    assert torch.equal(found[3].x, begun) and [state.left for state in found] == list(range(6, -1, -1))
    target, eps = path.velocity("target", 3.0), draws(5)[4]
    top = column(path.level(times[4:5].expand(5)).sigma, reds)
    x = begun + (1 - top) * reds + top * eps - reds
    for (t, s), state in zip(pairwise(times[4:, None].expand(-1, 5)), found[4:], strict=True):
        x = x + column(path.level(s).sigma - path.level(t).sigma, x) * target(x, t)
        assert torch.allclose(state.x, x, atol=1e-11)


def test_sampled_steps_keep_the_black_part_of_a_mask(make_path: Any, reds: Any, end: Any) -> None:
    path, mask = make_path(), torch.tensor([[[[1.0, 0.0]]]])
    settings = Delta(steps=8, scale=2.0, scale_source=1.0, n_min=4)
    states = change(path, reds, falling(path, 8), settings, generator=generator(0, 0, "e"), role="target", mask=mask)
    edited = end(states)
    assert torch.equal(edited[..., 1], reds[..., 1]) and (edited[..., 0] - reds[..., 0]).min() > 0.5


def test_settings_of_no_use_raise() -> None:
    few = {"n_min": 2, "steps": 2}, {"n_min": 1, "law": "uniform"}, {"of": 50, "t_start": 0.5}, {"of": 8, "steps": 9}
    for given in ({"base": "cond"}, {"weight": "posterior"}, {"weight": "dds", "drift": "none"}, *few):
        with pytest.raises(ValueError, match=r"^got (base|weight|n_min|of) .*, expected "):
            Delta(**given)
    for given in ({"law": "rising"}, {"drift": "cubic"}):
        with pytest.raises(ValueError, match="expected one of falling, uniform; none, linear, parabola"):
            Delta(**given)
