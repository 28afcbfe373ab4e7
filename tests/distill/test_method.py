"""The family as rows of one function: the reference's formulas, exactness on the closed-form prior, scale, faults.

Mutations tried, each seen to fail: weight left out; division by B left out; the noise of Rev not used for x_t; guided
prediction inside Rev; s and 1 - s exchanged; NaN replaced by numbers instead of skipped; latents not detached.
"""

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.random import generator, normal
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.priors.base import bind
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
    return distill(x, predict, t, prior_kind=kind, schedule=schedule, method=method, generator=draws)


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
    rfds, sds, sjc = (run(x, METHODS[name], prior, predict).grad for name in ("rfds", "sds", "sjc"))
    torch.testing.assert_close(sds, (1 - t) * t**2 * rfds, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sjc, t * rfds, rtol=1e-10, atol=1e-12)


def test_the_kind_of_the_prior_does_not_change_the_gradient():
    x, grads = latents(), []
    for kind in ("flow", "eps", "v", "x0"):
        prior, predict = mixture(kind=kind, schedule=DiscreteVP(betas("scaled_linear", 1000)))
        grads.append(run(x, METHODS["rfds_rev"], prior, predict).grad)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-8, atol=1e-10)


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


def flat_colour_gradient(height, width, batch, method):
    prior = GaussianPrior(torch.full((1, 2, height, width), 0.7, dtype=torch.float64), 0.0)
    predict = bind(prior, {"cond": prior.embed([""]), "uncond": prior.embed([""])})
    colour = torch.full((1, 2, 1, 1), 0.2, dtype=torch.float64, requires_grad=True)
    t = torch.full((batch,), 0.4, dtype=torch.float64)
    run(colour.expand(batch, 2, height, width), method, prior, predict, t=t).loss.backward()
    return colour.grad


@pytest.mark.parametrize("name", sorted(METHODS))
def test_resolution_and_batch_size_do_not_change_the_strength(name):
    wanted = flat_colour_gradient(4, 5, 3, METHODS[name])
    assert wanted.abs().min() > 1e-3
    torch.testing.assert_close(flat_colour_gradient(8, 10, 3, METHODS[name]), wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(flat_colour_gradient(4, 5, 6, METHODS[name]), wanted, rtol=1e-9, atol=0)


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
        distill(
            x, predict, t, prior_kind="flow", schedule=rectified_flow, method=method, generator=draws
        ).loss.backward()
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
    for wrong in ({"weight": "cosmic"}, {"noise": "pink"}, {"rev_steps": -1}):
        with pytest.raises(ValueError, match="expected"):
            Method(**wrong)
