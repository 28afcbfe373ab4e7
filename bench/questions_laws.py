"""What docs/questions.md computes, without drawing: closed forms, and the same measured through the project's code.

Everything is in float64 unless a prior says otherwise. Times are t in [0, 1], 0 clean; indices are k = 0 .. N - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, join, noise, split
from threestudio_rf.core.ddpm import DDPM, clip
from threestudio_rf.core.level import Schedule, betas, column, rectified_flow
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.core.times import spacing
from threestudio_rf.distill.noise import rev_noise
from threestudio_rf.priors.base import Prior, bind
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.tiny.train.discriminator import LOSSES

DOUBLE = torch.float64
STEPS = 20
PROMPTS = ("a red mushroom, front view", "an orange snowman, front view", "a blue cube, side view")


def draw(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of `shape`."""
    return normal(shape, generator(0, seed, "bench/questions"), dtype=DOUBLE)


def stable() -> DDPM:
    """Stable Diffusion's table of 1000 betas."""
    return DDPM(betas("scaled_linear", 1000))


def pixels() -> DDPM:
    """The table of improved-diffusion for pictures in [-1, 1]: linear from 1e-4 to 0.02, 1000 betas."""
    return DDPM(betas("linear", 1000, start=1e-4, end=0.02))


# (a) v, and one step against many


def two_modes(kind: Kind, schedule: Schedule, *, std: float = 0.1) -> GaussianPrior:
    """Numbers near -1 and +1, as latents (B, 1, 1, 1)."""
    means = torch.tensor([-1.0, 1.0], dtype=DOUBLE).reshape(2, 1, 1, 1)
    return GaussianPrior(means, std, kind=kind, schedule=schedule)


def exact(prior: GaussianPrior) -> Field:
    """The prior's own prediction, without guidance."""
    return bind(prior, {"cond": prior.embed([""])}).field()


class Path(NamedTuple):
    """A walk to `sample` (B, ...) with x0_hat (S, B, ...) at each of its `times` (S,)."""

    times: Tensor
    x0_hat: Tensor
    sample: Tensor

    def error(self) -> Tensor:
        """Root mean square (S, B) of x0_hat - sample over the elements of one sample."""
        return (self.x0_hat - self.sample).flatten(2).square().mean(2).sqrt()


def walk(field: Field, x: Tensor, times: Tensor) -> Path:
    """First-order steps through `times` (S + 1,), remembering what every single one took for the clean picture."""
    guesses: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        p = field(x, t)
        guesses.append(split(field.kind, p, x, field.schedule(t))[0])
        return p

    *_, sample = solve(Field(watched, field.kind, field.schedule), x, times)
    return Path(times[:-1], torch.stack(guesses), sample)


class Run:
    """Samples of a prior: 16 noises for each prompt, guided by `scale`, even times but for `shift`."""

    def __init__(self, prior: Prior, scale: float, *, shift: float = 1.0, copies: int = 16) -> None:
        self.prior, self.scale = prior, scale
        words = prior.embed([*PROMPTS, ""])
        rows = torch.arange(len(PROMPTS)).repeat_interleave(copies)
        self.predict = bind(prior, {"cond": words.select(rows), "uncond": words.select([len(PROMPTS)])})
        self.noise = normal((len(rows), *prior.latent_shape), generator(0, 0, "bench/questions"))
        self.path = walk(self.predict.field(scale), self.noise, spacing(STEPS, shift=shift))

    def rev(self, times: Tensor) -> Tensor:
        """(T, 3): per picture and averaged, the variance of eps' after one step k = 1 - t on the prior's own samples,
        and its correlation with eps and with x0."""
        x0, eps = self.path.sample, normal(self.noise.shape, generator(1, 0, "bench/questions"))
        rows = []
        for t in times.tolist():
            at = torch.full((len(x0),), t)
            found = rev_noise(x0, eps, at, self.predict)
            table = torch.stack(
                [torch.stack(three).flatten(1).cov(correction=0) for three in zip(found, eps, x0, strict=True)]
            )
            deviation = table.diagonal(dim1=1, dim2=2).sqrt()
            correlation = table[:, 0, 1:] / deviation[:, :1] / deviation[:, 1:]
            rows.append(torch.cat([table[:, :1, 0], correlation], 1).mean(0))
        return torch.stack(rows)


class Guess(NamedTuple):
    """Root mean square distances, each (T,): to the truth, and to the nearest mode of the data."""

    to_truth: Tensor
    to_data: Tensor


def one_against_many(
    prior: GaussianPrior, times: Tensor, *, steps: int = STEPS, draws: int = 4000
) -> tuple[Guess, Guess]:
    """x0_hat of one call, and the end of `steps` steps from the same x_t, where x_t is a true x0 noised to each t."""
    x0 = prior.means[torch.arange(draws) % len(prior.means)] + prior.std * draw(0, draws, 1, 1, 1)
    eps, rows = draw(1, draws, 1, 1, 1), []
    for t in times.tolist():
        x_t = noise(x0, eps, prior.schedule(torch.full((draws,), t, dtype=DOUBLE)))
        path = walk(
            exact(prior),
            x_t,
            torch.linspace(t, 0, steps + 1, dtype=DOUBLE),
        )
        for found in (path.x0_hat[0], path.sample):
            nearest = (found[:, None] - prior.means).abs().amin(1)
            rows.append(torch.stack([(found - x0).square().mean().sqrt(), nearest.square().mean().sqrt()]))
    table = torch.stack(rows).reshape(len(times), 2, 2)
    return Guess(*table[:, 0].T), Guess(*table[:, 1].T)


def turn(schedule: Schedule, t: float, *, draws: int = 4000) -> tuple[float, float]:
    """(largest error of x0 = alpha x_t - sigma v, root mean square error of v when its formula is fed x_t for x0)."""
    x0, eps = draw(0, draws, 1, 1, 1), draw(1, draws, 1, 1, 1)
    level = schedule(torch.full((draws,), t, dtype=DOUBLE))
    alpha, sigma = level.like(x0)
    x_t, v = noise(x0, eps, level), join("v", x0, eps, level)
    wrong = join("v", x_t, eps, level) - v
    return float((alpha * x_t - sigma * v - x0).abs().max()), float(wrong.square().mean().sqrt())


# (b) weights and discriminator losses


def bound_weights(process: DDPM) -> dict[str, Tensor]:
    """What multiplies the squared error of each kind in the variational bound; and for x0 what LDM has instead."""
    kinds: tuple[Kind, ...] = ("eps", "x0", "v")
    weights = {kind: process.lvlb_weights(kind) for kind in kinds}
    return weights | {"slip": process.lvlb_weights("x0", ldm_compat=True)}


def with_parentheses(process: DDPM) -> Tensor:
    """LDM's x0 weight with the parentheses it seems to lack: 0.5 sqrt(abar) / (2 (1 - abar))."""
    return 0.5 * process.abar.sqrt() / (2 * (1 - process.abar))


def discriminator_curves(logits: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By loss: its part (L,) on a true patch of each logit, on a false one, and the slope of the former."""
    curves = {}
    for name, loss in LOSSES.items():
        told = torch.tensor([1e4], dtype=DOUBLE)  # a logit that costs nothing on its own side
        at = logits.clone().requires_grad_()
        real = torch.stack([loss(logit[None], -told) for logit in at])
        fake = torch.stack([loss(told, logit[None]) for logit in logits])
        (slope,) = torch.autograd.grad(real.sum(), at)
        curves[name] = (real.detach(), fake, slope)
    return curves


# (c) the posterior mean, two ways


def mean_through_x0(process: DDPM, eps_hat: Tensor, x_k: Tensor, k: Tensor, *, clipped: bool) -> Tensor:
    """Nichol and Dhariwal 2021, eq. 11: c1 x0_hat + c2 x_k, with x0_hat limited to [-1, 1] or not."""
    limit = clip if clipped else None
    return process.p_mean_variance(eps_hat, x_k, k, kind="eps", limit=limit).previous.mean


def mean_through_eps(process: DDPM, eps_hat: Tensor, x_k: Tensor, k: Tensor) -> Tensor:
    """The same paper, eq. 13: (x_k - beta / sqrt(1 - abar) eps_hat) / sqrt(1 - beta)."""
    beta, abar = process.betas[k], process.abar[k]
    return (x_k - column(beta / (1 - abar).sqrt(), x_k) * eps_hat) / column((1 - beta).sqrt(), x_k)


def mean_gaps(process: DDPM, *, x0_hat: float, eps_hat: float = 0.5) -> tuple[Tensor, Tensor]:
    """abs(eq. 11 - eq. 13) (N,) without and with clipping, for a network that says `eps_hat` and so implies `x0_hat`
    at every k."""
    k = torch.arange(len(process))
    eps = torch.full((len(k), 1), eps_hat, dtype=DOUBLE)
    x_k = process.q_sample(torch.full_like(eps, x0_hat), k, eps)
    other = mean_through_eps(process, eps, x_k, k)
    plain, cut = (mean_through_x0(process, eps, x_k, k, clipped=clipped) for clipped in (False, True))
    return (plain - other).abs()[:, 0], (cut - other).abs()[:, 0]


class Clipped(NamedTuple):
    """x0 and what an imperfect network says of it, all (B,)."""

    x0: Tensor
    x0_hat: Tensor
    limited: Tensor


def clipping(process: DDPM, k: int, *, error: float, draws: int = 50_000) -> Clipped:
    """Pixels near -0.8 and 0.8, noised to index k; the network is the exact one plus white noise of deviation `error`
    in eps_hat."""
    prior = GaussianPrior(
        torch.tensor([-0.8, 0.8], dtype=DOUBLE).reshape(2, 1, 1, 1), 0.05, kind="eps", schedule=process.table
    )
    x0 = prior.means[torch.arange(draws) % 2] + prior.std * draw(2, draws, 1, 1, 1)
    index = torch.full((draws,), k)
    x_k = process.q_sample(x0, index, draw(3, draws, 1, 1, 1))
    eps_hat = exact(prior)(x_k, process.table.time(index)) + error * draw(4, draws, 1, 1, 1)
    x0_hat = split("eps", eps_hat, x_k, process.table.levels(index))[0]
    return Clipped(x0.flatten(), x0_hat.flatten(), clip(x0_hat).flatten())


# (d) the noise after one step of RFDS-Rev


def rev_variance(t: Tensor, s: float, step: float | None) -> Tensor:
    """Var(eps') for data N(m, s) and an exact network: eps' = eps + k (u_hat + x0 - eps), k = `step`, None for 1 - t.

    With V = (1 - t)^2 s + t^2 and g = (t - (1 - t) s) / V, eps' has the coefficient 1 - k + k g t of eps and
    k (1 + g (1 - t)) of x0 - m. For k = 1 - t this is t^2 / V, for k = 1 it is s + (t^2 - (1 - t)^2 s^2) / V.
    """
    k = 1 - t if step is None else torch.full_like(t, step)
    g = (t - (1 - t) * s) / ((1 - t) ** 2 * s + t**2)
    return (1 - k + k * g * t) ** 2 + s * (k * (1 + g * (1 - t))) ** 2


def rev_measured(
    times: Sequence[float], s: float, step: float | None, *, mean: float = 0.7, draws: int = 50_000
) -> Tensor:
    """(T, 2): variance of eps' of the project's own `rev_noise` on data N(mean, s), and its correlation with x0."""
    prior = GaussianPrior(torch.full((1, 1, 1, 1), mean, dtype=DOUBLE), s**0.5, schedule=rectified_flow)
    predict = bind(prior, {"cond": prior.embed([""])})
    x0, eps = mean + s**0.5 * draw(5, draws, 1, 1, 1), draw(6, draws, 1, 1, 1)
    rows = []
    for t in times:
        at = torch.full((draws,), t, dtype=DOUBLE)
        found = rev_noise(x0, eps, at, predict, step=step)
        both = torch.stack([found.flatten(), x0.flatten()])
        rows.append(torch.stack([found.var(), both.corrcoef()[0, 1]]))
    return torch.stack(rows)
