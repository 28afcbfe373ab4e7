"""The closed-form prior against numerical integration, against the score by autograd, and as a sampler.

Mutations tried, each seen to fail: alpha left out of var; factor 2 of the exponent dropped; weights ignored; sigma
factor of eps_hat dropped; condition ignored.
"""

import pytest
import torch

from threestudio_rf.core.convert import split
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.priors.gaussian import GaussianPrior

VP = DiscreteVP(betas("scaled_linear", 1000))
T = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def two_modes(**options):
    means = torch.tensor([-1.5, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return GaussianPrior(means, 0.4, weights, names=["left", "right"], **options)


@pytest.mark.parametrize("schedule", [rectified_flow, VP])
@pytest.mark.parametrize("kind", ["flow", "eps", "x0", "v"])
def test_the_estimate_is_the_posterior_mean_by_numerical_integration(schedule, kind):
    prior = two_modes(schedule=schedule, kind=kind)
    x_t = torch.tensor([0.3, -0.8, 1.7], dtype=torch.float64)[:, None, None, None]
    level = schedule(T)
    x0_hat, eps_hat = split(kind, prior.predict(x_t, T, prior.embed([""] * 3)), x_t, level)
    grid = torch.linspace(-6, 7, 40001, dtype=torch.float64)
    density = 0.3 * torch.exp(-((grid + 1.5) ** 2) / 0.32) + 0.7 * torch.exp(-((grid - 2) ** 2) / 0.32)
    for i in range(3):
        alpha, sigma = level.alpha[i], level.sigma[i]
        posterior = density * torch.exp(-((x_t[i] - alpha * grid) ** 2).flatten() / (2 * sigma**2))
        mean = (posterior * grid).sum() / posterior.sum()
        torch.testing.assert_close(x0_hat[i].squeeze(), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            eps_hat[i].squeeze(), (x_t[i].squeeze() - alpha * mean) / sigma, rtol=1e-5, atol=1e-5
        )


def test_the_predicted_noise_is_minus_sigma_times_the_score():
    means = torch.randn(3, 2, 4, 5, generator=generator(0, 0, "means"), dtype=torch.float64)
    prior = GaussianPrior(means, 0.5, kind="eps")
    x_t = torch.randn(3, 2, 4, 5, generator=generator(0, 0, "x"), dtype=torch.float64).requires_grad_()
    alpha, sigma = rectified_flow(T).like(x_t[:, None])
    var = alpha**2 * 0.25 + sigma**2
    energy = -((x_t[:, None] - alpha * means) ** 2 / (2 * var)).flatten(2).sum(2)
    energy.logsumexp(1).sum().backward()
    eps_hat = prior.predict(x_t.detach(), T, prior.embed([""] * 3))
    torch.testing.assert_close(eps_hat, -T[:, None, None, None] * x_t.grad, rtol=1e-10, atol=1e-10)


def test_a_prompt_selects_the_modes_it_names_and_others_select_all():
    prior = two_modes()
    assert prior.embed(["the left one", "right", "", "unknown", "left right"]).tensors["modes"].tolist() == [
        [1, 0],
        [0, 1],
        [1, 1],
        [1, 1],
        [1, 1],
    ]
    x_t, t = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for prompt, mean in (("left", -1.5), ("right", 2.0), ("", 0.3 * -1.5 + 0.7 * 2.0)):
        u = prior.predict(x_t, t, prior.embed([prompt]))
        assert -u.item() == pytest.approx(mean)


def test_sampling_reaches_both_modes_in_their_shares():
    prior = two_modes()
    x = torch.randn(2000, 1, 1, 1, generator=generator(0, 0, "x"), dtype=torch.float64)
    everything = prior.embed([""]).expand(2000)
    times = torch.linspace(1, 0, 41, dtype=torch.float64)
    *_, end = solve(Field(lambda x, t: prior.predict(x, t, everything), "flow", rectified_flow), x, times)
    right = end > 0.25
    assert right.double().mean() == pytest.approx(0.7, abs=0.03)
    assert end[right].mean() == pytest.approx(2.0, abs=0.05) and end[right].std() == pytest.approx(0.4, abs=0.05)


def test_one_step_from_much_noise_is_farther_from_the_data_than_many_steps():
    prior = two_modes()
    x = torch.randn(500, 1, 1, 1, generator=generator(0, 0, "x"), dtype=torch.float64)
    everything = prior.embed([""]).expand(500)

    def distance(steps):
        times = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
        *_, end = solve(Field(lambda x, t: prior.predict(x, t, everything), "flow", rectified_flow), x, times)
        return torch.minimum((end + 1.5).abs(), (end - 2).abs()).mean()

    assert distance(1) > 2 * distance(30)


def test_predictions_are_finite_at_both_ends_in_float32_and_follow_the_dtype():
    prior = GaussianPrior(torch.randn(2, 3, 8, 8), 0.3)
    for dtype in (torch.float32, torch.float64):
        x_t, t = torch.randn(2, 3, 8, 8, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
        out = prior.predict(x_t, t, prior.embed(["", "mode 1"]))
        assert out.dtype == dtype and out.isfinite().all()


def test_images_are_averaged_into_latents_and_come_back():
    prior = GaussianPrior(torch.zeros(1, 6, 4, 5), 1.0)
    image = torch.rand(2, 3, 4, 5).repeat_interleave(8, 2).repeat_interleave(8, 3).requires_grad_()
    z = prior.encode(image)
    assert z.shape == (2, 6, 4, 5)
    torch.testing.assert_close(prior.decode(z), image[:, :, ::8, ::8])
    z.sum().backward()
    assert image.grad.abs().min() > 0
    for wrong in (torch.zeros(1, 3, 33, 40), torch.zeros(1, 3, 32, 41)):
        with pytest.raises(ValueError, match="multiples"):
            prior.encode(wrong)


def test_wrong_shapes_are_errors():
    for means, options in ((torch.zeros(3, 2), {}), (torch.zeros(2, 1, 1, 1), {"names": ["one"]})):
        with pytest.raises(ValueError, match="expected"):
            GaussianPrior(means, 1.0, **options)
