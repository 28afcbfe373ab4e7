"""What the noise is after RFDS-Rev: identities of the reverse step; inversion on a Gaussian.

Seen to fail: `u_hat - x0 - eps`; k = t instead of 1 - t; the inner prediction for both roles; the level computed once
but x_t not renewed between steps; the noise returned in float32; a time that overshoots its end.
"""

import pytest
import torch

from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.distill.noise import implied, inverted, random_noise, rev_noise, rising
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
VP = DiscreteVP(betas("scaled_linear", 1000))


def setting(schedule=rectified_flow, kind="flow"):
    draw = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = GaussianPrior(draw[2, :2], 0.3, kind=kind, schedule=schedule)
    return draw[0], draw[1], prior, bind(prior, {"cond": prior.embed(["mode 0"])})


def rev(x0, eps, prior, predict, **options):
    return rev_noise(x0, eps, T, Model(predict, prior.kind, prior.schedule), **options)


def test_random_noise_is_standard_normal_and_follows_the_generator():
    x0 = torch.zeros(2, 3, 64, 64)
    one, two = (random_noise(x0, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == x0.shape
    assert abs(one.mean()) < 0.02 and abs(one.var() - 1) < 0.03


def test_a_step_of_one_gives_the_clean_latent_plus_the_velocity():
    x0, eps, prior, predict = setting()
    u = predict(noise(x0, eps, rectified_flow(T)), T, ["cond"])["cond"]
    torch.testing.assert_close(rev(x0, eps, prior, predict, step=1.0), x0 + u, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("schedule", "kind"), [(rectified_flow, "flow"), (VP, "eps"), (VP, "v")])
def test_the_default_step_gives_the_predicted_noise_exactly(schedule, kind):
    x0, eps, prior, predict = setting(schedule, kind)
    level = schedule(T)
    x_t = noise(x0, eps, level)
    _, eps_hat = split(kind, predict(x_t, T, ["cond"])["cond"], x_t, level)
    torch.testing.assert_close(rev(x0, eps, prior, predict), eps_hat, rtol=1e-10, atol=1e-10)


def test_the_older_published_form_is_the_default_step():
    x0, eps, prior, predict = setting()
    x_t = noise(x0, eps, rectified_flow(T))
    u = predict(x_t, T, ["cond"])["cond"]
    older = u + (x_t - T[:, None, None, None] * u)
    torch.testing.assert_close(rev(x0, eps, prior, predict), older, rtol=1e-12, atol=1e-12)


def test_a_gradient_step_on_the_noise_is_the_rev_step_of_the_same_size():
    x0, eps, prior, predict = setting()
    u = predict(noise(x0, eps, rectified_flow(T)), T, ["cond"])["cond"]
    variable = eps.clone().requires_grad_()
    (0.5 * (variable - (x0 + u)) ** 2).sum().backward()
    torch.testing.assert_close(rev(x0, eps, prior, predict, step=0.3), eps - 0.3 * variable.grad)


def test_several_steps_are_one_step_repeated_and_none_leaves_the_noise():
    x0, eps, prior, predict = setting()
    once = rev(x0, eps, prior, predict, step=0.5)
    torch.testing.assert_close(rev(x0, eps, prior, predict, step=0.5, steps=2), rev(x0, once, prior, predict, step=0.5))
    assert torch.equal(rev(x0, eps, prior, predict, steps=0), eps)


def test_the_inner_prediction_asks_for_the_prompt_only():
    x0, eps, prior, predict = setting()
    asked = []

    def spy(x_t, t, roles):
        asked.append(list(roles))
        return predict(x_t, t, roles)

    rev(x0, eps, prior, spy, steps=3)
    assert asked == [["cond"]] * 3


@pytest.mark.parametrize(("t", "variance"), [(0.9, 0.988), (0.5, 0.5), (0.1, 0.012)])
def test_the_variance_of_the_renewed_noise_is_that_of_a_conditional_mean(t, variance):
    generator = torch.Generator().manual_seed(0)
    prior = GaussianPrior(torch.zeros(1, 1, 64, 64, dtype=torch.float64), 1.0)
    predict = bind(prior, {"cond": prior.embed([""])})
    x0, eps = torch.randn(2, 16, 1, 64, 64, generator=generator, dtype=torch.float64)
    times = torch.full((16,), t, dtype=torch.float64)
    renewed = rev_noise(x0, eps, times, predict)
    assert renewed.dtype == torch.float64
    assert renewed.var() == pytest.approx(variance, rel=0.03)


def test_the_fixed_point_of_the_rev_step_is_the_noise_that_explains_the_picture():
    x0, eps, *_ = setting()
    prior = GaussianPrior(torch.ones(1, *SHAPE[1:], dtype=torch.float64), 1.0)
    predict = bind(prior, {"cond": prior.embed([""])})
    eps = rev(x0, eps, prior, predict, step=0.5, steps=500)
    u = predict(noise(x0, eps, rectified_flow(T)), T, ["cond"])["cond"]
    torch.testing.assert_close(eps, x0 + u, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rev(x0, eps, prior, predict, steps=3), eps, rtol=1e-8, atol=1e-8)


def test_rising_times_take_each_sample_to_its_end_in_its_share_of_the_steps():
    times = rising(torch.tensor([0.04, 0.3, 0.7, 1.0], dtype=torch.float64), 10)
    assert times.shape == (11, 4) and times[0].eq(0).all()
    assert times[-1].tolist() == [0.04, 0.3, 0.7, 1.0]
    assert [(column.diff() > 0).sum().item() for column in times.T] == [1, 3, 7, 10]
    for column, count in zip(times.T, (1, 3, 7, 10), strict=True):
        torch.testing.assert_close(column[: count + 1], torch.linspace(0, column[-1], count + 1, dtype=torch.float64))


def test_inversion_finds_the_noise_of_a_gaussian_up_to_its_steps_and_eta_adds_some():
    x0 = setting()[0]
    prior = GaussianPrior(torch.zeros(1, *SHAPE[1:], dtype=torch.float64), 1.0)
    model = bind(prior, {"cond": prior.embed([""])})
    norm = (T**2 + (1 - T) ** 2).sqrt()[:, None, None, None]
    errors = []
    for steps in (20, 40, 80):
        x_t = inverted(x0, T, model, steps=steps, scale=1.0, generator=torch.Generator())
        errors.append((x_t - norm * x0).abs().max().item())
    assert errors[0] < 0.2 and 1.7 < errors[0] / errors[1] < 2.3 and 1.7 < errors[1] / errors[2] < 2.3
    noisy = [
        inverted(x0, T, model, steps=20, scale=1.0, eta=0.3, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*noisy) and (noisy[0] - x_t).abs().max() > 0.1
    torch.testing.assert_close(noise(x0, implied(x0, x_t, rectified_flow(T)), rectified_flow(T)), x_t)
