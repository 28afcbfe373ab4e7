"""Every method on the closed-form mixture, in float64, against its own formula written out here in eps-hats.

Nothing of distill, solve or convert is used for what is expected: levels by their definition, eps_hat by the kind's own
equation, the inversions step by step, random numbers drawn again in the same order.

Seen to fail: weight sigma for sigma^2; the sign of the inner guidance turned in `inverted`; one step more in `rising`,
or those of the noisiest sample for all; eta times sigma; push_back to t instead of 1; ism with s = t, the prompt in its
target, or x0 for x0_hat; the twin's sign, that of the bridge; the threshold of nfsd at 0.1; CSD's push rising; a stage
that begins one step late; the target kept where it is 0; the estimate of a difference of predictions.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.distill.residual import bounded
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior

DOUBLE = torch.float64
SHAPE = (3, 2, 4, 5)
T = torch.tensor([0.15, 0.5, 0.9], dtype=DOUBLE)
TABLE = DiscreteVP(betas("scaled_linear", 1000))
PATHS = {"flow": ("flow", rectified_flow), "eps": ("eps", TABLE), "v": ("v", TABLE)}
WORDS = {"cond": "a b", "uncond": "", "neg": "c", "target": "a", "artifact": "d", "twin": "b c"}


class Setting:
    """A prior of one kind, and its eps-hats by role."""

    def __init__(self, path: str, seed: int = 0) -> None:
        self.kind, self.schedule = PATHS[path]
        means = torch.randn(4, *SHAPE[1:], generator=generator(0, 0, "means"), dtype=DOUBLE)
        self.prior = GaussianPrior(means, 1.0, kind=self.kind, schedule=self.schedule, names=["a", "b", "c", "d"])
        self.predict = bind(self.prior, {role: self.prior.embed([text]) for role, text in WORDS.items()})
        self.x0 = torch.randn(SHAPE, generator=generator(seed, 0, "x"), dtype=DOUBLE)
        self.noise = generator(seed, 0, "noise")

    def level(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha, sigma (B, 1, 1, 1): 1 - t and t, or by the table's product of 1 - beta up to entry 1000 t."""
        if self.kind == "flow":
            alpha, sigma = 1 - t, t
        else:
            linear = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=DOUBLE) ** 2
            abar = torch.cat([torch.ones(1, dtype=DOUBLE), (1 - linear).cumprod(0)])[(1000 * t).round().long()]
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return alpha[:, None, None, None], sigma[:, None, None, None]

    def eps(self, x: torch.Tensor, t: torch.Tensor, role: str) -> torch.Tensor:
        """eps_hat of a role."""
        alpha, sigma = self.level(t)
        p = self.prior.predict(x, t, self.prior.embed([WORDS[role]]).expand(len(x)))
        return {"flow": x + alpha * p, "eps": p, "v": sigma * x + alpha * p}[self.kind]

    def cfg(self, x: torch.Tensor, t: torch.Tensor, s: float) -> torch.Tensor:
        """Guided eps_hat."""
        uncond = self.eps(x, t, "uncond")
        return uncond + s * (self.eps(x, t, "cond") - uncond)

    def clean(self, x: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """x0_hat that goes with eps_hat; x itself where there is no noise."""
        alpha, sigma = self.level(t)
        return (x - sigma * eps) / alpha

    def draw(self) -> torch.Tensor:
        """The next normal numbers."""
        return torch.randn(SHAPE, generator=self.noise).double()

    def noised(self, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """alpha x0 + sigma eps."""
        alpha, sigma = self.level(t)
        return alpha * self.x0 + sigma * eps

    def inverted(self, ends: torch.Tensor, steps: int, s: float, eta: float = 0.0) -> torch.Tensor:
        """Sample by sample: max(1, int(steps t)) even DDIM steps up from 0, with eta of the posterior's deviation."""
        counts = [max(1, int(steps * end + 1e-6)) for end in ends.tolist()]
        x = self.x0
        for i in range(max(counts)):
            here = torch.tensor([min(i, n) / n for n in counts], dtype=DOUBLE) * ends
            there = torch.tensor([min(i + 1, n) / n for n in counts], dtype=DOUBLE) * ends
            e = self.cfg(x, here, s)
            (a, b), (a2, b2) = self.level(here), self.level(there)
            x = a2 * self.clean(x, here, e) + b2 * e
            if eta:
                variance = (b / b2) ** 2 * (b2**2 - (a2 * b / a) ** 2)
                x = x + eta * variance.clamp(min=0).sqrt() * self.draw()
        return x

    def implied(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The eps that brings x0 to x."""
        alpha, sigma = self.level(t)
        return (x - alpha * self.x0) / sigma


def sds(s: Setting, t: torch.Tensor, scale: float = 100.0) -> torch.Tensor:
    eps = s.draw()
    return s.level(t)[1] ** 2 * (s.cfg(s.noised(t, eps), t, scale) - eps)


def sjc(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.noised(t, s.draw())
    eps = s.implied(x, t)
    return s.cfg(x, t, 101.0) - eps


def flow_residual(s: Setting, t: torch.Tensor, eps: torch.Tensor, scale: float) -> torch.Tensor:
    x = s.noised(t, eps)
    e = s.cfg(x, t, scale)
    return (e - s.clean(x, t, e)) - (eps - s.x0)


def rfds(s: Setting, t: torch.Tensor, scale: float = 100.0) -> torch.Tensor:
    return flow_residual(s, t, s.draw(), scale)


def rev(s: Setting, t: torch.Tensor, scale: float = 100.0, whole: bool = False) -> torch.Tensor:
    x = s.noised(t, eps := s.draw())
    e = s.eps(x, t, "cond")
    u = e - s.clean(x, t, e)
    alpha, sigma = s.level(t)
    eps = eps + (1.0 if whole else alpha / (alpha + sigma)) * (u + s.x0 - eps)
    return flow_residual(s, t, eps, scale)


def sdi(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.inverted(t, 10, -7.5, eta=0.3)
    return s.x0 - s.clean(x, t, s.cfg(x, t, 7.5))


def csd(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.noised(t, s.draw())
    return s.eps(x, t, "cond") - s.eps(x, t, "uncond")


def nfsd(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.noised(t, s.draw())
    cond, uncond, neg = (s.eps(x, t, role) for role in ("cond", "uncond", "neg"))
    domain = torch.where(((1000 * t).round() - 1 < 200)[:, None, None, None], uncond, uncond - neg)
    return s.level(t)[1] ** 2 * (7.5 * (cond - uncond) + domain)


def bridge(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.noised(t, s.draw())
    return s.level(t)[1] ** 2 * 40.0 * (s.eps(x, t, "target") - s.eps(x, t, "artifact"))


def ism(s: Setting, t: torch.Tensor) -> torch.Tensor:
    before = t - 0.05
    x_s = s.inverted(before, 5, 0.0)
    target = s.eps(x_s, before, "uncond")
    alpha, sigma = s.level(t)
    x_t = alpha * s.clean(x_s, before, target) + sigma * target
    return sigma / alpha * (s.cfg(x_t, t, 7.5) - target)


def ucm(s: Setting, t: torch.Tensor) -> torch.Tensor:
    ends = torch.ones_like(t)
    return flow_residual(s, t, s.implied(s.inverted(ends, 3, 1.0), ends), 60.0)


def vsd(s: Setting, t: torch.Tensor) -> torch.Tensor:
    x = s.noised(t, s.draw())
    return s.level(t)[1] ** 2 * (s.cfg(x, t, 7.5) - s.eps(x, t, "twin"))


def sim(s: Setting, t: torch.Tensor) -> torch.Tensor:
    """Dive3D's d / |d| of d = x0_hat_twin - x0_hat with guidance pos + 7.5 (pos - neg), |d| over the picture, times the
    root of the number of its elements."""
    x = s.noised(t, s.draw())
    cond, uncond = s.eps(x, t, "cond"), s.eps(x, t, "uncond")
    alpha, sigma = s.level(t)
    d = sigma / alpha * (cond + 7.5 * (cond - uncond) - s.eps(x, t, "twin"))
    return d / d.square().sum((1, 2, 3), keepdim=True).sqrt() * d[0].numel() ** 0.5


def trace(s: Setting, t: torch.Tensor) -> torch.Tensor:
    """The bridge's variances summed entry by entry, from x0_hat at another time on one side, from x0 on the other."""
    when = 0.02 + 0.68 * torch.rand(len(t), generator=s.noise).double()
    x_s = s.noised(when, s.draw())
    aim = s.clean(x_s, when, s.cfg(x_s, when, 20.0))
    roots = [1e-2 + (3e-4**0.5 - 1e-2) * i / 999 for i in range(500)]
    variances = [root**2 for root in roots + roots[::-1]]
    last = [round(1000 * one) for one in t.tolist()]
    f, b = (
        torch.tensor(x, dtype=DOUBLE)[:, None, None, None]
        for x in ([sum(variances[:k]) for k in last], [sum(variances[k - 1 :]) for k in last])
    )
    x = (b * aim + f * s.x0) / (f + b) + (f * b / (f + b)).sqrt() * s.draw()
    return (x - aim) / f.sqrt() - s.eps(x, t, "twin")


FORMULAS = {
    "sds": (0.5, sds, 2),
    "sjc": (0.5, sjc, 2),
    "rfds": (0.5, rfds, 2),
    "rfds_rev": (0.5, rev, 3),
    "rfds_rev_instaflow": (0.5, lambda s, t: rev(s, t, 50.0, whole=True), 3),
    "sdi": (0.5, sdi, 2 + 2 * 9),
    "csd": (0.5, csd, 2),
    "nfsd": (0.5, nfsd, 3),
    "bridge": (0.49, lambda s, t: sds(s, t, 40.0), 2),
    "bridge 2": (0.5, bridge, 2),
    "ism": (0.5, ism, 2 + 1 + 4),
    "ucm": (0.35, lambda s, t: rfds(s, t, 60.0), 2),
    "ucm 2": (0.36, ucm, 2 + 3),
    "vsd": (0.5, vsd, 3),
    "sim": (0.5, sim, 3),
    "trace": (0.5, trace, 3),
    "ours": (0.5, lambda s, t: rfds(s, t, 4.0), 2),
}
"""Name: share of the run, formula of the residual, network calls per sample at T."""


def run(name: str | Method, setting: Setting, t: torch.Tensor = T, progress: float = 0.5):
    method = METHODS[name] if isinstance(name, str) else name
    return distill(
        setting.x0.clone().requires_grad_(),
        setting.predict,
        t,
        method=method,
        generator=generator(0, 0, "noise"),
        progress=progress,
    )


def test_there_is_a_formula_for_every_method():
    assert {name.split()[0] for name in FORMULAS} == set(METHODS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_of_a_method_is_its_formula_for_every_kind_of_prior(name, path):
    progress, formula, calls = FORMULAS[name]
    setting = Setting(path)
    out = run(name.split()[0], setting, progress=progress)
    wanted = formula(Setting(path), T) / setting.x0[0].numel() / len(T)
    assert wanted.abs().amax((1, 2, 3)).min() > 1e-6
    torch.testing.assert_close(out.grad, wanted, rtol=1e-8, atol=1e-11)
    assert setting.predict.calls == calls


def test_a_bounded_residual_keeps_its_direction_and_is_never_longer_than_one():
    r = (
        torch.randn(SHAPE, generator=generator(1, 0, "r"), dtype=DOUBLE)
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None, None]
    )
    r[1, 0] = 0
    for c in (0.0, 0.5, 1e6):
        found = bounded(r, c)
        length = found.flatten(1).square().mean(1).sqrt()
        mean = r.flatten(1).square().mean(1)
        torch.testing.assert_close(length, (mean / (mean + c**2)).sqrt())
        torch.testing.assert_close(found / length[:, None, None, None], r / mean.sqrt()[:, None, None, None])
    torch.testing.assert_close(1e6 * bounded(r, 1e6)[:2], r[:2], rtol=1e-9, atol=1e-12)
    assert torch.equal(bounded(torch.zeros(SHAPE), 0.0), torch.zeros(SHAPE))


def test_nfsd_changes_at_entry_200_of_the_table_as_its_code_does():
    for t, roles in ((0.2, ("cond", "uncond")), (0.201, ("cond", "uncond", "neg"))):
        assert METHODS["nfsd"].guidance(torch.tensor([t])).roles == roles


def test_the_second_term_of_csd_fades_with_the_run():
    method = Method(space="eps", combiner="csd_negative", scale=2.0)
    for progress in (0.0, 0.25, 1.0):
        setting = Setting("flow")
        out = run(method, setting, progress=progress)
        x = setting.noised(T, setting.draw())
        cond, uncond, neg = (setting.eps(x, T, role) for role in ("cond", "uncond", "neg"))
        wanted = 2 * (cond - uncond) + 2 * (1 - progress) * (uncond - neg)
        torch.testing.assert_close(out.grad, wanted / setting.x0.numel(), rtol=1e-8, atol=1e-11)
        assert setting.predict.calls == (2 if progress == 1 else 3)


def test_a_difference_has_the_estimate_of_its_first_role():
    setting = Setting("flow")
    x = setting.noised(T, setting.draw())
    for name, progress, role in (("csd", 0.0, "cond"), ("bridge", 1.0, "target"), ("vsd", 0.0, "cond")):
        wanted = setting.clean(x, T, setting.eps(x, T, role))
        torch.testing.assert_close(run(name, setting, progress=progress).x0_hat, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["sdi", "ism", "ucm"])
def test_a_sample_is_inverted_as_if_it_were_alone(name):
    together = Setting("flow")
    method = replace(METHODS[name].at(1.0), invert_eta=0.0)
    whole = run(method, together).grad
    for i in range(3):
        alone = Setting("flow")
        alone.x0 = alone.x0[i : i + 1]
        one = run(method, alone, t=T[i : i + 1]).grad
        torch.testing.assert_close(one, 3 * whole[i : i + 1], rtol=1e-9, atol=1e-12)
