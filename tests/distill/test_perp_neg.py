"""Perp-Neg inside the one guided prediction: threestudio's formula written out, zero weights, kinds, spaces, calls, and
a janus of the closed-form prior that it cures.

Seen to fail: the sign of the weights turned; the negative not taken relative to "uncond"; the projection left out, or
taken over the whole batch; the negatives given to Rev's inner call; x0_hat from plain guidance; a negative of zero
weight still asked for; the negatives dropped at scale 1; "cond" replaced by the whole of Perp-Neg at scale s.
"""

from __future__ import annotations

import pytest
import torch

from threestudio_rf.core.convert import KINDS, noise, split
from threestudio_rf.core.guide import perp_neg
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator, normal
from threestudio_rf.distill.guidance import Guidance
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.gaussian import GaussianPrior

SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.15, 0.5, 0.85], dtype=torch.float64)
ROLES = ("cond", "uncond", "one", "other")
NEGATIVES = {
    "one": torch.tensor([-1.5, 0.0, -0.4], dtype=torch.float64),
    "other": torch.tensor([-0.2, 0.0, -2.0], dtype=torch.float64),
}


def mixture(**options):
    means = torch.randn(4, *SHAPE[1:], generator=generator(0, 0, "means"), dtype=torch.float64)
    prior = GaussianPrior(means, 1.5, names=["a", "b", "c", "d"], **options)
    texts = {"cond": ["a b"], "uncond": [""], "one": ["b", "c", "d"], "other": ["c d"]}
    return prior, bind(prior, {role: prior.embed(prompts) for role, prompts in texts.items()})


def latents():
    return torch.randn(SHAPE, generator=generator(0, 0, "latents"), dtype=torch.float64).requires_grad_()


def run(method, prior, predict, negatives, x=None):
    return distill(
        latents() if x is None else x,
        Model(predict, prior.kind, prior.schedule),
        T,
        method=method,
        generator=generator(0, 0, "noise"),
        negatives=negatives,
    )


def threestudio(p, weights, scale):
    """Sample by sample: uncond + s (e_pos + sum w_i (e_i - (e_i . e_pos / e_pos . e_pos) e_pos))."""
    rows = []
    for i in range(len(p["cond"])):
        uncond = p["uncond"][i]
        e_pos, total = p["cond"][i] - uncond, torch.zeros_like(uncond)
        for role, weight in weights.items():
            e = p[role][i] - uncond
            total += weight[i] * (e - (e * e_pos).sum() / (e_pos * e_pos).sum() * e_pos)
        rows.append(uncond + scale * (e_pos + total))
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["rfds", "rfds_rev", "sds", "sjc"])
def test_every_method_has_threestudios_perp_neg_as_its_guided_prediction(name):
    prior, predict = mixture()
    method, x = METHODS[name], latents()
    out = run(method, prior, predict, NEGATIVES, x)
    eps, t = normal(SHAPE, generator(0, 0, "noise"), dtype=torch.float64), T[:, None, None, None]
    if method.noise == "rev":
        x_t = (1 - t) * x + t * eps
        eps = x_t + (1 - t) * predict(x_t, T, ["cond"])["cond"]
    torch.testing.assert_close(out.eps, eps.detach(), rtol=1e-10, atol=1e-10)
    x_t = ((1 - t) * x + t * eps).detach()
    u = threestudio(predict(x_t, T, ROLES), NEGATIVES, method.scale)
    factor = {"rfds": 1.0, "rfds_rev": 1.0, "sds": (1 - t) * t**2, "sjc": 1 - t}[name]
    wanted = factor * (u - (eps - x).detach()) / x[0].numel() / len(x)
    torch.testing.assert_close(out.grad, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(out.x0_hat, x_t - t * u, rtol=1e-9, atol=1e-9)
    assert (out.grad - run(method, prior, predict, None, x).grad).abs()[[0, 2]].amax((1, 2, 3)).min() > 1e-3


def test_any_combination_that_asks_for_the_prompt_has_its_perp_neg_form():
    _, predict = mixture()
    p = predict(latents().detach(), T, ROLES)
    difference = Guidance({"cond": 1.0, "uncond": -1.0}, NEGATIVES)(p)
    torch.testing.assert_close(difference, threestudio(p, NEGATIVES, 1.0) - p["uncond"])
    by_time = torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64)
    mixed = Guidance({"cond": by_time, "uncond": 1 - by_time}, NEGATIVES)(p)
    for i, scale in enumerate(by_time.tolist()):
        torch.testing.assert_close(mixed[i], threestudio(p, NEGATIVES, scale)[i])
    core = perp_neg(p["cond"], p["uncond"], [p["one"], p["other"]], weights=list(NEGATIVES.values()), scale=7.5)
    torch.testing.assert_close(Method(scale=7.5).guidance(T, negatives=NEGATIVES)(p), core)


@pytest.mark.parametrize("name", ["rfds", "rfds_rev", "sds"])
def test_zero_weights_are_plain_guidance_to_the_last_bit_and_cost_no_call(name):
    prior, predict = mixture()
    plain = run(METHODS[name], prior, predict, None)
    calls = predict.calls
    zero = run(METHODS[name], prior, predict, {role: 0 * weight for role, weight in NEGATIVES.items()})
    assert torch.equal(zero.grad, plain.grad) and torch.equal(zero.x0_hat, plain.x0_hat)
    assert predict.calls == 2 * calls


def test_a_sample_of_zero_weight_among_others_gets_plain_guidance():
    predictions = dict(zip(ROLES, torch.randn(4, *SHAPE, generator=generator(0, 0, "p")), strict=True))
    plain, pushed = (Method(scale=7.5).guidance(T, negatives=n)(predictions) for n in (None, NEGATIVES))
    torch.testing.assert_close(pushed[1], plain[1], rtol=1e-6, atol=1e-5)
    assert (pushed - plain).abs().amax((1, 2, 3))[[0, 2]].min() > 1


def test_the_kind_of_the_prior_does_not_change_the_gradient():
    x, grads = latents(), []
    for kind in KINDS:
        prior, predict = mixture(kind=kind, schedule=DiscreteVP(betas("scaled_linear", 1000)))
        grads.append(run(METHODS["rfds_rev"], prior, predict, NEGATIVES, x).grad)
    for other in grads[1:]:
        torch.testing.assert_close(other, grads[0], rtol=1e-8, atol=1e-10)


def test_spaces_differ_by_their_weight_only():
    prior, predict = mixture()
    flow, eps = (run(Method(space=space, scale=20.0), prior, predict, NEGATIVES).grad for space in ("flow", "eps"))
    torch.testing.assert_close(eps, (1 - T)[:, None, None, None] * flow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        (Method(), [ROLES]),
        (Method(noise="rev", rev_steps=2), [("cond",), ("cond",), ROLES]),
        (Method(scale=1.0), [ROLES]),
        (Method(scale=0.0), [("uncond",)]),
    ],
)
def test_roles_that_the_network_is_asked_for(method, asked):
    prior, predict = mixture()
    seen = []

    def spy(x_t, t, roles):
        seen.append(tuple(roles))
        return predict(x_t, t, roles)

    run(method, prior, spy, NEGATIVES)
    assert seen == asked


def test_at_scale_one_the_push_alone_is_added_to_the_prompt():
    _, predict = mixture()
    p = predict(latents().detach(), T, ROLES)
    push = Method(scale=1.0).guidance(T, negatives=NEGATIVES)(p) - p["cond"]
    along = (push * (p["cond"] - p["uncond"])).flatten(1).sum(1)
    assert along.abs().max() < 1e-9 and push[[0, 2]].abs().amax((1, 2, 3)).min() > 0.01


def test_a_missing_negative_and_one_that_is_not_finite_are_not_hidden():
    prior, predict = mixture()
    p = predict(latents().detach(), T, ROLES[:3])
    with pytest.raises(ValueError, match="other"):
        Method().guidance(T, negatives=NEGATIVES)(p)

    def broken(x_t, t, roles):
        out = predict(x_t, t, roles)
        return out | {"one": out["one"] * float("nan")} if "one" in roles else out

    out = run(METHODS["rfds"], prior, broken, NEGATIVES)
    assert out.skipped and out.grad.eq(0).all()


def share_behind(negatives, steps=60, n=64):
    """A prior that mostly shows the front even when asked for the back: where do particles end that ask for the back?

    Along the first axis the modes differ from no prompt, along the second front (+1) differs from back (-1)."""
    means = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 0.0]])[:, :, None, None].expand(3, 2, 2, 2)
    prior = GaussianPrior(means, 0.2)
    prompts = {"cond": [0.7, 0.3, 0.0], "uncond": [0.5, 0.5, 2.0], "front": [1.0, 0.0, 0.0]}
    predict = bind(prior, {role: Condition({"modes": torch.tensor([row])}) for role, row in prompts.items()})
    x = (0.3 * normal((n, 2, 2, 2), generator(0, 0, "start"))).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.1)
    for step in range(steps):
        optimiser.zero_grad()
        distill(
            x,
            Model(predict, "flow", rectified_flow),
            torch.full((n,), 0.98 - 0.9 * step / steps),
            method=Method(scale=3.0),
            generator=generator(0, step, "noise"),
            negatives=negatives and {role: torch.full((n,), weight) for role, weight in negatives.items()},
        ).loss.backward()
        optimiser.step()
    middle = x.detach().mean((2, 3))
    assert (middle[:, 0] > 0).all(), "the prompt itself is followed either way"
    return (middle[:, 1] < 0).float().mean().item()


def test_a_prior_that_prefers_the_front_shows_the_back_once_the_front_is_pushed_away():
    assert share_behind(None) < 0.3
    assert share_behind({"front": -1.5}) > 0.9


def test_the_estimate_is_that_of_the_guided_prediction_on_a_table_of_levels():
    prior, predict = mixture(kind="eps", schedule=DiscreteVP(betas("scaled_linear", 1000)))
    out = run(METHODS["sds"], prior, predict, NEGATIVES)
    level = prior.schedule(T)
    x_t = noise(latents().detach(), out.eps, level)
    guided = threestudio(predict(x_t, T, ROLES), NEGATIVES, 100.0)
    torch.testing.assert_close(out.x0_hat, split("eps", guided, x_t, level)[0], rtol=1e-9, atol=1e-9)
