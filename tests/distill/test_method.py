"""The family as rows of one function: the reference's formulas, exactness on the closed-form prior, scale, faults.

Seen to fail: weight left out; division by B left out; the noise of Rev not used for x_t; guided prediction inside Rev;
s and 1 - s exchanged; NaN replaced by numbers instead of skipped; latents not detached; the check of times left out, or
that of a table's first entry; a second stage that keeps its noise; sigma for sigma / alpha.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.distill.noise import SOURCES, Noised, bridge_level
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.gaussian import GaussianPrior

SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)


def mixture(std=0.3, **options):
    means = torch.randn(2, *SHAPE[1:], generator=generator(0, 0, "means"), dtype=torch.float64)
    prior = GaussianPrior(means, std, names=["red", "blue"], **options)
    return prior, bind(prior, {"cond": prior.embed(["red"]), "uncond": prior.embed([""])})


def latents(shape=SHAPE):
    return torch.randn(shape, generator=generator(0, 0, "latents"), dtype=torch.float64).requires_grad_()


def run(x, method, prior, predict, t=T, seed=0):
    kind, schedule = prior.kind, prior.schedule
    draws = generator(seed, 0, "noise")
    return distill(x, Model(predict, kind, schedule), t, method=method, generator=draws)


def guided(predict, x_t, t, scale):
    p = predict(x_t, t, ["cond", "uncond"])
    return p["uncond"] + scale * (p["cond"] - p["uncond"])


def reference(x, predict, t, scale, rev):
    """Loss and gradient of the reference's formulas: mean squared error over the batch, divided by the batch."""
    x0 = x.detach().requires_grad_()
    eps = normal(SHAPE, generator(0, 0, "noise"), dtype=torch.float64)
    times = t[:, None, None, None]
    if rev:
        x_t = (1 - times) * x0.detach() + times * eps
        u = predict(x_t, t, ["cond"])["cond"]
        eps = u + (x_t - times * u)
    u = guided(predict, ((1 - times) * x0 + times * eps).detach(), t, scale)
    (F.mse_loss(eps - x0, u) / len(x0)).backward()
    return x0.grad


@pytest.mark.parametrize("name", ["rfds", "rfds_rev"])
def test_the_reference_formulas_have_two_over_the_batch_times_our_gradient(name):
    prior, predict = mixture()
    x = latents()
    out = run(x, METHODS[name], prior, predict)
    wanted = reference(x, predict, T, METHODS[name].scale, rev=name == "rfds_rev")
    torch.testing.assert_close(2 / len(x) * out.grad, wanted, rtol=1e-10, atol=1e-12)
    out.loss.backward()
    torch.testing.assert_close(x.grad, out.grad)


def test_sds_sjc_and_rfds_are_one_direction_with_three_weights():
    prior, predict = mixture()
    x, t = latents(), T[:, None, None, None]
    methods = [replace(METHODS[name], scale=100.0) for name in ("rfds", "sds", "sjc")]
    rfds, sds, sjc = (run(x, method, prior, predict).grad for method in methods)
    torch.testing.assert_close(sds, (1 - t) * t**2 * rfds, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sjc, (1 - t) * rfds, rtol=1e-10, atol=1e-12)


def test_the_kind_of_the_prior_does_not_change_the_gradient():
    x, grads = latents(), []
    for kind in ("flow", "eps", "v", "x0"):
        prior, predict = mixture(kind=kind, schedule=DiscreteVP(betas("scaled_linear", 1000)))
        grads.append(run(x, METHODS["rfds_rev"], prior, predict).grad)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["sdi", "ism", "ucm"])
def test_a_prior_that_predicts_clean_pictures_inverts_from_one(name):
    x, grads = latents(), []
    for kind in ("x0", "eps"):
        prior, predict = mixture(kind=kind, schedule=DiscreteVP(betas("scaled_linear", 1000)))
        out = run(x, METHODS[name].at(0.5), prior, predict)
        assert not out.skipped
        grads.append(out.grad.flatten())
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.98
    prior, predict = mixture(kind="x0")
    with pytest.raises(ValueError, match="expected a time above 0"):
        run(x, METHODS[name].at(0.5), prior, predict)


def test_the_two_rev_presets_differ_in_the_size_of_the_step_only():
    paper, flow = METHODS["rfds_rev"], METHODS["rfds_rev_instaflow"]
    assert (paper.rev_step, flow.rev_step) == (None, 1.0)
    prior, predict = mixture()
    x, t = latents(), T[:, None, None, None]
    one, whole = run(x, paper, prior, predict), run(x, flow, prior, predict)
    plain = run(x, METHODS["rfds"], prior, predict)
    torch.testing.assert_close(one.eps - plain.eps, (1 - t) * (whole.eps - plain.eps), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("method", "calls"), [(METHODS["rfds"], 2), (METHODS["rfds_rev"], 3), (Method(scale=1.0), 1)])
def test_network_calls_per_evaluation(method, calls):
    prior, predict = mixture()
    run(latents(), method, prior, predict)
    assert predict.calls == calls


def test_the_mean_gradient_is_zero_at_the_mean_of_a_gaussian():
    prior = GaussianPrior(torch.full((1, 2, 16, 16), 0.7, dtype=torch.float64), 0.5)
    predict = bind(prior, {"cond": prior.embed([""])})
    x = torch.full((64, 2, 16, 16), 0.7, dtype=torch.float64, requires_grad=True)
    out = run(x, Method(scale=1.0), prior, predict, t=torch.full((64,), 0.6, dtype=torch.float64))
    assert (out.grad.mean() / out.grad.std()).abs() < 4 / out.grad.numel() ** 0.5


def even_time():
    """The t at which TraCe's bridge is as far from its aim as the straight path from x0: there its noise cancels
    against that of a twin which knows no bridge."""
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    deviation = bridge_level(times).deviation
    return deviation[(1000 * deviation).round() == 1000 * times][0].item()


def flat_colour_gradient(height, width, batch, method):
    """Every role sees one flat picture and nothing else, so the noise cannot show in the gradient of a flat colour."""
    words = ("cond", "uncond", "neg", "target", "artifact", "twin")
    values = torch.tensor([0.7, -0.4, 0.1, 0.9, -0.2, 0.3], dtype=torch.float64)
    prior = GaussianPrior(values[:, None, None, None].expand(-1, 2, height, width), 1e-9, names=words)
    predict = bind(
        prior, {word: Condition({"modes": row[None]}) for word, row in zip(words, torch.eye(6), strict=True)}
    )
    colour = torch.full((1, 2, 1, 1), 0.2, dtype=torch.float64, requires_grad=True)
    t = torch.full((batch,), even_time() if method.noise == "trace" else 0.4, dtype=torch.float64)
    run(colour.expand(batch, 2, height, width), method, prior, predict, t=t).loss.backward()
    return colour.grad


@pytest.mark.parametrize("progress", [0.0, 1.0])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_resolution_and_batch_size_do_not_change_the_strength(name, progress):
    method = METHODS[name].at(progress)
    wanted = flat_colour_gradient(4, 5, 3, method)
    assert wanted.abs().min() > 1e-3
    torch.testing.assert_close(flat_colour_gradient(8, 10, 3, method), wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(flat_colour_gradient(4, 5, 6, method), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["rfds", "rfds_rev"])
def test_an_image_moves_to_the_mode_of_its_prompt(name):
    means = torch.stack([torch.full((2, 4, 5), value) for value in (-1.0, 1.0)])
    prior = GaussianPrior(means, 0.05, names=["red", "blue"])
    predict = bind(prior, {"cond": prior.embed(["a blue ball"]), "uncond": prior.embed([""])})
    x = torch.zeros(3, 2, 4, 5, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=0.05)
    method = Method(noise=METHODS[name].noise, scale=3.0)
    for step in range(80):
        t = 0.98 - 0.9 * step / 80 * torch.ones(3)
        draws = generator(0, step, "noise")
        optimizer.zero_grad()
        distill(x, Model(predict, "flow", rectified_flow), t, method=method, generator=draws).loss.backward()
        optimizer.step()
    assert (x - 1).abs().max() < 0.15


def test_the_reported_numbers_are_those_of_the_noise_and_the_residual():
    prior, predict = mixture()
    x = latents()
    out = run(x, METHODS["rfds"], prior, predict)
    per_sample = (out.grad * x[0].numel() * len(x)).flatten(1)
    torch.testing.assert_close(out.residual_norm, per_sample.square().mean(1).sqrt())
    torch.testing.assert_close(out.eps_mean, out.eps.mean())
    assert out.x0_hat.shape == x.shape and not out.skipped


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["rfds", "rfds_rev"])
def test_a_prediction_that_is_not_finite_gives_a_zero_gradient_and_a_flag(name, bad):
    prior, predict = mixture()

    def broken(x_t, t, roles):
        out = predict(x_t, t, roles)
        out["cond"][1, 0, 0, 0] = bad
        return out

    x = latents()
    out = run(x, METHODS[name], prior, broken)
    out.loss.backward()
    assert out.skipped and out.grad.eq(0).all() and x.grad.eq(0).all() and out.loss == 0


def test_the_network_sees_no_graph_and_half_precision_latents_are_computed_in_float32():
    prior, predict = mixture()
    seen = []

    def spy(x_t, t, roles):
        seen.append((x_t.requires_grad, x_t.dtype))
        return predict(x_t, t, roles)

    x = latents().detach().bfloat16().requires_grad_()
    out = run(x, METHODS["rfds"], prior, spy, t=T.float())
    out.loss.backward()
    assert seen == [(False, torch.float32)] and x.grad.dtype == torch.bfloat16


def test_the_generator_decides_the_noise():
    prior, predict = mixture()
    x = latents()
    one, same, other = (run(x, METHODS["rfds"], prior, predict, seed=seed).grad for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_unknown_names_are_errors():
    for wrong in (
        {"weight": "cosmic"},
        {"noise": "pink"},
        {"combiner": "sum"},
        {"stage_two_noise": "pink"},
        {"stage_two_combiner": "sum"},
        {"rev_steps": -1},
        {"invert_steps": 0},
        {"invert_eta": -0.1},
        {"ism_delta": 0.0},
        {"noise": "ism"},
        {"stage_two_noise": "ism", "space": "x0"},
    ):
        with pytest.raises(ValueError, match="expected"):
            Method(**wrong)


@pytest.mark.parametrize(
    ("schedule", "bad"), [(rectified_flow, (0.0, -0.1, 1.1)), (DiscreteVP(betas("linear", 10)), (0.0, 0.04, 1.01))]
)
def test_a_time_outside_the_schedule_is_refused_before_the_network_is_asked(schedule, bad):
    prior, predict = mixture(schedule=schedule)
    run(latents(), METHODS["rfds"], prior, predict, t=torch.full((3,), 0.06, dtype=torch.float64))
    asked = predict.calls
    for t in bad:
        with pytest.raises(ValueError, match=r"t: got .* expected above"):
            run(latents(), METHODS["rfds"], prior, predict, t=torch.tensor([0.5, t, 0.9], dtype=torch.float64))
    assert predict.calls == asked


def test_the_second_stage_takes_over_what_it_names_and_nothing_else():
    method = Method(scale=3.0, stage_two=0.5, stage_two_noise="push_back")
    assert method.at(0.49) is method
    late = method.at(0.5)
    assert (late.noise, late.combiner, late.scale, late.at(1.0)) == ("push_back", "cfg", 3.0, late)
    assert Method(stage_two=0.5, stage_two_combiner="bridge").roles == ("cond", "uncond", "target", "artifact")


def test_isms_factor_is_the_scale_of_space_x0():
    prior, predict = mixture()
    x = latents()
    by_weight = run(x, Method(space="eps", weight="sigma_over_alpha"), prior, predict).grad
    torch.testing.assert_close(by_weight, run(x, Method(space="x0"), prior, predict).grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", ["flow", "eps", "v"])
def test_a_difference_of_predictions_has_the_weights_of_the_spaces_too(kind):
    schedule = rectified_flow if kind == "flow" else DiscreteVP(betas("scaled_linear", 1000))
    prior, predict = mixture(kind=kind, schedule=schedule)
    alpha, sigma = schedule(T).like(latents())
    eps, flow, v, x0 = (
        run(latents(), Method(space=space, combiner="csd"), prior, predict).grad for space in ("eps", "flow", "v", "x0")
    )
    torch.testing.assert_close(flow, (alpha + sigma) / alpha * eps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(v, (alpha**2 + sigma**2) / alpha * eps, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(x0, sigma / alpha * eps, rtol=1e-9, atol=1e-12)


def test_sdi_with_the_noise_that_was_found_last_is_ddim(monkeypatch):
    prior, predict = mixture(kind="eps", schedule=DiscreteVP(betas("scaled_linear", 1000)))
    times = torch.linspace(0.9, 0.1, 9, dtype=torch.float64)
    field = predict.field(3.0)
    x = latents().detach()
    start = times[:1].expand(3)
    x0, cached = split("eps", field(x, start), x, prior.schedule(start))
    monkeypatch.setitem(
        SOURCES, "cached", lambda x0, t, model, **_: Noised(noise(x0, cached, prior.schedule(t)), cached)
    )
    for t, wanted in zip(times[1:], solve(field, x, times), strict=True):
        level = prior.schedule(t.expand(3))
        torch.testing.assert_close(noise(x0, cached, level), wanted, rtol=1e-9, atol=1e-9)
        out = run(x0, Method(space="x0", noise="cached", scale=3.0), prior, predict, t=t.expand(3))
        x0, x_t = x0 - out.grad * x0.numel(), wanted
        cached = (x_t - level.like(x0)[0] * x0) / level.like(x0)[1]
