"""Every method of the table: it lands in the target, its limits, its mask, and the embedded priors there and back.

Seen to fail: source and target exchanged, faithful() that keeps the target's guidance, the noise of an inversion not
taken apart (`split` left out), the mask given to nobody, shift None read as 1 for SD3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import states
from threestudio_rf.core.times import falling_times
from threestudio_rf.edit.delta import Delta
from threestudio_rf.edit.direct import Direct
from threestudio_rf.edit.irfds import IRFDS
from threestudio_rf.edit.method import INVERTING, METHODS, edit, find_noise, resample, settled, times_of
from threestudio_rf.edit.path import Path
from threestudio_rf.edit.steer import Steered
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny
from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.exact import ExactPrior

DOUBLE = torch.float64
TABLE = DiscreteVP(betas("scaled_linear", 1000))
FLOWS_ONLY = ("irfds_sd3",)


def small(name: str) -> Any:
    """The settings of a method, with guidance that a mixture without overlap needs none of, and fewer steps."""
    settings = replace(METHODS[name], scale=1.0)
    if isinstance(settings, IRFDS) and settings.steps:
        return replace(settings, steps=60, rate=0.05, accumulate=1)
    if name == "pds":  # it holds on to the picture, so without guidance it stops half way
        return replace(settings, scale=6.0, scale_source=1.0, rate=8.0)
    if isinstance(settings, Delta):
        return replace(settings, scale_source=1.0)
    if name == "flowchef":
        return replace(settings, k=0.2, stop=0.2)
    if name == "direct":
        return replace(settings, steps=60)
    return replace(settings, stop=0.1) if name == "rf_inversion" else settings


@pytest.mark.parametrize("prior", ["flow", "eps", "v"])
@pytest.mark.parametrize("name", METHODS)
def test_every_edit_lands_in_the_target_mode(name: str, prior: str, make_path: Any, reds: Any, modes: Any) -> None:
    path, reds = make_path(prior, std=0.1), modes[:1] + (reds - modes[:1]) / 3
    if name in FLOWS_ONLY and prior != "flow":
        with pytest.raises(ValueError, match=r"0\.\.0\.936"):
            settled(METHODS[name], path.schedule, 1.0)
        return
    settings = settled(small(name), path.schedule, 1.0)
    *_, state = edit(path, reds, settings, generator=generator(0, 0, "e"))
    away = [(state.x - mode).flatten(1).norm(dim=1) for mode in modes]
    assert bool((away[1] < 0.5 * away[0]).all()) and away[1].mean() < 0.6


@pytest.mark.parametrize("name", ["euler", "rf_solver", "fireflow", "rf_inversion"])
def test_a_prior_that_predicts_clean_pictures_is_asked_about_one_too(
    name: str, make_path: Any, reds: Any, end: Any
) -> None:
    paths = [make_path(kind) for kind in ("x0", "eps")]
    settings = settled(small(name), paths[0].schedule, 1.0)
    one, other = (end(edit(path, reds, settings, generator=generator(0, 0, "e"))) for path in paths)
    assert (one - other).abs().max() < 0.1 and (one - reds).abs().max() > 0.5


@pytest.mark.parametrize("name", METHODS)
def test_a_reconstruction_returns_the_picture(name: str, make_path: Any, reds: Any) -> None:
    path, settings = make_path(), small(name)
    if isinstance(settings, Steered):
        settings = replace(settings, t_start=0.05)
    *_, state = edit(path, reds, settings.faithful(), generator=generator(0, 0, "e"), role="source")
    assert (state.x - reds).abs().mean() < 0.3
    if isinstance(settings, Delta):
        assert torch.allclose(state.x, reds, atol=1e-12)


def test_the_noise_that_is_found_leads_back_in_two_parts_as_in_one(make_path: Any, reds: Any, end: Any) -> None:
    path = make_path("v")
    for name in INVERTING:
        if name in FLOWS_ONLY:
            continue
        settings = settled(replace(small(name), t_start=0.8), path.schedule, 1.0)
        trail = list(find_noise(path, reds, settings, generator=generator(0, 0, "e")))
        parts = end(resample(path, reds, trail[-1].x, settings, role="target", trail=trail))
        whole = end(edit(path, reds, settings, generator=generator(0, 0, "e")))
        assert torch.allclose(parts, whole, atol=1e-12)


def test_sdedit_is_plain_sampling_at_full_strength_and_nothing_at_none(make_path: Any, reds: Any, end: Any) -> None:
    path = make_path()
    eps = normal(reds.shape, generator(0, 0, "e"), dtype=DOUBLE)
    full = Steered(steps=12, t_start=1.0, shift=1.0, scale=1.0)
    plain = end(states(path.velocity("target", 1.0), eps, falling_times(rectified_flow, 12)))
    assert torch.allclose(end(edit(path, reds, full, generator=generator(0, 0, "e"))), plain, atol=1e-12)
    none = end(edit(path, reds, replace(full, t_start=1e-4), generator=generator(0, 0, "e")))
    assert (none - reds).abs().max() < 1e-3
    gaps = [
        (end(edit(path, reds, replace(full, t_start=t), generator=generator(0, 0, "e"))) - reds).abs().mean()
        for t in (0.2, 0.5, 0.8)
    ]
    assert gaps[0] < gaps[1] < gaps[2]


@pytest.mark.parametrize("name", METHODS)
def test_the_black_part_of_a_mask_stays(name: str, make_path: Any, reds: Any, end: Any) -> None:
    path, mask = make_path(), torch.tensor([[[[1.0, 0.0]]]])
    settings = small(name)
    settings = replace(settings, k=1.0, stop=1.0) if name == "flowchef" else settings
    edited = end(edit(path, reds, settings, generator=generator(0, 0, "e"), mask=mask))
    assert torch.allclose(edited[..., 1], reds[..., 1], atol=1e-12)
    assert (edited[..., 0] - reds[..., 0]).abs().mean() > 0.3


def test_a_sample_does_not_depend_on_its_batch(make_path: Any, reds: Any, end: Any) -> None:
    path = make_path()
    for name in METHODS:
        several = [generator(0, i, "e") for i in range(5)]
        together = end(edit(path, reds, small(name), generator=several))
        alone = end(edit(path, reds[3:4], small(name), generator=[generator(0, 3, "e")]))
        assert torch.allclose(together[3:4], alone, atol=1e-10), name


def test_the_priors_own_shift_is_taken_where_none_is_asked_for() -> None:
    open_ = settled(METHODS["euler"], rectified_flow, 3.0)
    assert torch.equal(times_of(rectified_flow, open_), falling_times(rectified_flow, 28, shift=3.0))
    fixed = settled(replace(METHODS["euler"], shift=1.0), rectified_flow, 3.0)
    assert torch.equal(times_of(rectified_flow, fixed), falling_times(rectified_flow, 28))
    assert settled(METHODS["euler"], TABLE, 3.0).shift == 1
    with pytest.raises(ValueError, match="those of a table"):
        settled(replace(METHODS["euler"], shift=3.0), TABLE, 1.0)


def test_a_method_of_differences_has_no_noise(make_path: Any, reds: Any) -> None:
    for call in (
        lambda: find_noise(make_path(), reds, Delta(), generator=generator(0, 0, "e")),
        lambda: resample(make_path(), reds, reds, Delta(), role="target"),
    ):
        with pytest.raises(ValueError, match="got Delta, expected a method that goes through noise"):
            call()


def test_directedit_takes_a_sample_of_the_exact_prior_there_and_back(end: Any) -> None:
    """Its field is steeper than a network's: in float32 the way back was 1e-5 and more away."""
    prior = ExactPrior(size=32, cameras=BankCameras(48, (1.8, 1.8), (46.0, 46.0)), q=0.02)
    path = Path(bind(prior, {"source": prior.embed(["a red ball"])}))
    eps = normal((1, *prior.latent_shape), generator(0, 0, "e"))
    x0 = end(resample(path, torch.zeros_like(eps), eps, Steered(steps=24, scale=1.0, shift=1.0), role="source"))
    before = path.model.calls
    back = end(edit(path, x0, Direct(steps=8, shift=1.0).faithful(), generator=generator(0, 0, "f"), role="source"))
    assert back.dtype == x0.dtype and (back - x0).abs().max() < 1e-6 and path.model.calls - before == 16


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_prior_takes_a_sample_of_its_own_there_and_back(name: str, end: Any) -> None:
    """The source is a sample of the prior, so that only the solver's error is measured. Seen: 0.01 to 0.05."""
    prior = load_tiny(name)
    found = prior.embed(["a red ball, side view", ""])
    path = Path(bind(prior, {"source": found.select([0]), "uncond": found.select([1])}))
    shift = prior.time_shift
    eps = normal((1, *prior.latent_shape), generator(0, 0, "e"))
    sampled = Steered(steps=24, scale=1.0, shift=None)
    x0 = end(resample(path, torch.zeros_like(eps), eps, settled(sampled, prior.schedule, shift), role="source"))
    settings = settled(Direct(steps=8), prior.schedule, shift).faithful()
    before = path.model.calls
    back = end(edit(path, x0, settings, generator=generator(0, 0, "f"), role="source"))
    assert (back - x0).abs().max() < 1e-5 and path.model.calls - before == 16, "one call a step up and one down"
    for method in ("rf_solver", "fireflow"):
        settings = settled(replace(METHODS[method], steps=24), prior.schedule, shift).faithful()
        back = end(edit(path, x0, settings, generator=generator(0, 0, "f"), role="source"))
        assert (back - x0).square().mean().sqrt() < 0.25 * x0.std(), (
            method,
            (back - x0).square().mean().sqrt() / x0.std(),
        )
