"""The discrete diffusion process: forward marginals, posterior and reverse step.

Ho et al. 2020 (DDPM), Nichol and Dhariwal 2021 (improved-diffusion), Rombach et al. 2022 (LDM).

Indices k are int64 (B,) in 0 .. N - 1, tables are float64, results follow the dtype and device of x (B, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.convert import Kind, noise, row, same_shape, split
from threestudio_rf.core.level import DiscreteVP, column
from threestudio_rf.core.model import Map
from threestudio_rf.core.random import Draws
from threestudio_rf.core.solve import fresh
from threestudio_rf.core.transfer import sent

Output = Kind | Literal["previous"]
"""What a network predicts: one of our kinds, or the mean of the previous x."""

Variance = Literal["small", "large", "learned", "learned_range"]


class Gaussian(NamedTuple):
    """A diagonal normal distribution, every field (B, ...)."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class Reverse(NamedTuple):
    """p(x_{k-1} | x_k) and the x0_hat that its mean was made from."""

    previous: Gaussian
    x0_hat: Tensor


class State(NamedTuple):
    """Where an ancestral loop stands: x after the step at index k."""

    k: int
    x: Tensor
    x0_hat: Tensor


def clip(x0_hat: Tensor) -> Tensor:
    """x0_hat limited to [-1, 1]."""
    return x0_hat.clamp(-1, 1)


def dynamic_threshold(x0_hat: Tensor, *, quantile: float = 0.995) -> Tensor:
    """Imagen's dynamic threshold (Saharia et al. 2022): clip to [-s, s], divide by s, per sample of (B, ...).

    s is the quantile of the absolute values, at least 1.
    """
    s = torch.quantile(x0_hat.flatten(1).abs().float(), quantile, dim=1).clamp(min=1)
    limit = column(s, x0_hat)
    return x0_hat.clamp(-limit, limit) / limit


class DDPM:
    """The process of a table of betas (N,).

    q(x_{k-1} | x_k, x0) has mean c1 x0 + c2 x_k with c1 = beta sqrt(abar_prev) / (1 - abar), c2 = (1 - abar_prev)
    sqrt(1 - beta) / (1 - abar), and variance (1 - w) beta (1 - abar_prev) / (1 - abar) + w beta, w = `upper_share` in
    [0, 1]; abar_prev is 1 at the first index, where the variance is therefore 0 for w = 0. Its logarithm there is
    that of 1e-20 (`first_log_variance` "floor", LDM) or that of the second index ("second", improved-diffusion).
    """

    def __init__(
        self, betas: Tensor, *, upper_share: float = 0.0, first_log_variance: Literal["floor", "second"] = "second"
    ) -> None:
        if len(betas) < 2:
            raise ValueError(f"got {len(betas)} betas, expected at least two")
        if not 0 <= upper_share <= 1:
            raise ValueError(f"got upper_share {upper_share}, expected 0..1")
        if first_log_variance not in ("floor", "second"):
            raise ValueError(f"got first_log_variance {first_log_variance!r}, expected floor or second")
        self.table = DiscreteVP(betas)
        self.betas, self.abar = self.table.betas, self.table.abar
        self.abar_prev = torch.cat([torch.ones_like(self.abar[:1]), self.abar[:-1]])
        self.abar_next = torch.cat([self.abar[1:], torch.zeros_like(self.abar[:1])])
        self.c1 = self.betas * self.abar_prev.sqrt() / (1 - self.abar)
        self.c2 = (1 - self.abar_prev) * (1 - self.betas).sqrt() / (1 - self.abar)
        lower = self.betas * (1 - self.abar_prev) / (1 - self.abar)
        self.variance = (1 - upper_share) * lower + upper_share * self.betas
        if first_log_variance == "floor":
            self.log_variance = self.variance.clamp(min=1e-20).log()
        else:
            self.log_variance = _second_first(self.variance).log()

    def __len__(self) -> int:
        return len(self.table)

    def q_sample(self, x0: Tensor, k: Tensor, eps: Tensor) -> Tensor:
        """x_k = sqrt(abar) x0 + sqrt(1 - abar) eps, any rank."""
        return noise(x0, eps, self.table.levels(k))

    def q_mean_variance(self, x0: Tensor, k: Tensor) -> Gaussian:
        """q(x_k | x0): mean sqrt(abar) x0, variance 1 - abar."""
        alpha, sigma = self.table.levels(k)
        variance = sigma.square()
        return _gaussian(column(alpha, x0) * x0, column(variance, x0), column(variance.log(), x0))

    def posterior(self, x0: Tensor, x_k: Tensor, k: Tensor) -> Gaussian:
        """q(x_{k-1} | x_k, x0), see the class."""
        same_shape(x0, x_k)
        mean = self._at(self.c1, k, x_k) * x0 + self._at(self.c2, k, x_k) * x_k
        return _gaussian(mean, self._at(self.variance, k, x_k), self._at(self.log_variance, k, x_k))

    def p_mean_variance(
        self,
        prediction: Tensor,
        x_k: Tensor,
        k: Tensor,
        *,
        kind: Output,
        variance: Variance = "small",
        hook: Map | None = None,
        limit: Map | None = None,
    ) -> Reverse:
        """p(x_{k-1} | x_k) from a prediction of `kind`: x0_hat, then `hook`, then `limit`, then the posterior mean.

        `limit` is `clip`, `dynamic_threshold` or any other map. Variances: "small" is the posterior's, "large" is beta
        (at the first index the small one of the second), "learned" takes the second half of the prediction's 2C
        channels as log-variance, "learned_range" takes it as a place between the logarithms of small (-1) and beta
        (+1). ValueError for an unknown kind or variance, or a prediction without that second half.
        """
        output, value, log_value = self._reverse_variance(prediction, x_k, k, variance)
        x0_hat = self._x0(output, x_k, k, kind)
        for change in (hook, limit):
            x0_hat = x0_hat if change is None else change(x0_hat)
        mean = self.posterior(x0_hat, x_k, k).mean
        return Reverse(_gaussian(mean, value, log_value), x0_hat)

    def lvlb_weights(self, kind: Kind, *, ldm_compat: bool = False) -> Tensor:
        """(N,) float64: what multiplies the squared error of a prediction in the variational bound.

        For x0, c1^2 / (2 var) = abar_prev beta^2 / (1 - abar)^2 / (2 var); another kind has (sigma / det)^2 as much,
        for eps beta^2 / (2 var (1 - beta) (1 - abar)). The first weight copies the second. `ldm_compat` reproduces,
        for x0, the 0.5 sqrt(abar) / (2 * 1 - abar) of CompVis/latent-diffusion, a slip of precedence. ValueError when
        a weight is not finite.
        """
        if ldm_compat and kind == "x0":
            weights = 0.5 * self.abar.sqrt() / (2 * 1 - self.abar)
        else:
            alpha, sigma = self.abar.sqrt(), (1 - self.abar).sqrt()
            a, b = row(kind, alpha, sigma)
            weights = (self.c1 * sigma / (alpha * b - sigma * a)).square() / (2 * self.variance)
        weights = _second_first(weights)
        if not bool(weights.isfinite().all()):
            raise ValueError(f"got weights {weights}, expected finite ones")
        return weights

    def _at(self, values: Tensor, k: Tensor, x: Tensor) -> Tensor:
        if bool(((k < 0) | (k >= len(self))).any()):
            raise ValueError(f"got index {int(k.min())}..{int(k.max())}, expected 0..{len(self) - 1}")
        return column(sent(values, k.device)[k], x)

    def _x0(self, output: Tensor, x_k: Tensor, k: Tensor, kind: Output) -> Tensor:
        if kind == "previous":
            return (output - self._at(self.c2, k, x_k) * x_k) / self._at(self.c1, k, x_k)
        return split(kind, output, x_k, self.table.levels(k))[0]

    def _reverse_variance(
        self, prediction: Tensor, x_k: Tensor, k: Tensor, variance: Variance
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part of the prediction that is the mean's, the variance and its logarithm."""
        if variance == "small":
            return prediction, self._at(self.variance, k, x_k), self._at(self.log_variance, k, x_k)
        if variance == "large":
            large = torch.cat([self.variance[1:2], self.betas[1:]])
            return prediction, self._at(large, k, x_k), self._at(large.log(), k, x_k)
        if variance not in ("learned", "learned_range"):
            raise ValueError(f"got variance {variance!r}, expected small, large, learned or learned_range")
        if prediction.shape[1] != 2 * x_k.shape[1]:
            raise ValueError(f"got {prediction.shape[1]} channels, expected {2 * x_k.shape[1]} for {variance}")
        output, log_value = prediction.chunk(2, 1)
        if variance == "learned_range":
            low, high = self._at(self.log_variance, k, x_k), self._at(self.betas.log(), k, x_k)
            log_value = low + (log_value + 1) / 2 * (high - low)
        return output, log_value.exp(), log_value


def draw_previous(
    previous: Gaussian,
    k: Tensor,
    generator: Draws,
    *,
    temperature: float = 1.0,
    repeat_noise: bool = False,
    noise_dropout: float = 0.0,
) -> Tensor:
    """One sample of p(x_{k-1} | x_k); where k = 0 it is the mean, per sample. The rest is `solve.fresh`."""
    mean = previous.mean
    z = fresh(mean, generator, temperature=temperature, repeat_noise=repeat_noise, noise_dropout=noise_dropout)
    return mean + column(k > 0, mean) * (0.5 * previous.log_variance).exp() * z


def ancestral_loop(
    process: DDPM,
    ask: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    kind: Output,
    generator: Draws,
    variance: Variance = "small",
    hook: Map | None = None,
    limit: Map | None = None,
    temperature: float = 1.0,
    repeat_noise: bool = False,
    noise_dropout: float = 0.0,
    times: Tensor | None = None,
) -> Iterator[State]:
    """All N states from noise x (B, ...) down to k = 0; `ask` hears t = (k + 1) / N, float32 (B,).

    `times` (N + 1,) falling to 0 are heard instead of (k + 1) / N: 1000-step labels for a process of another length.
    """
    n = len(process)
    heard = process.table.time(torch.arange(n - 1, -2, -1)) if times is None else times
    if heard.shape != (n + 1,):
        raise ValueError(f"got times {tuple(heard.shape)}, expected ({n + 1},)")
    heard = heard.to(x.device, torch.float32)
    for index in reversed(range(n)):
        k = torch.full((len(x),), index, device=x.device)
        prediction = ask(x, heard[n - 1 - index].expand(len(x)))
        reverse = process.p_mean_variance(prediction, x, k, kind=kind, variance=variance, hook=hook, limit=limit)
        x = draw_previous(
            reverse.previous,
            k,
            generator,
            temperature=temperature,
            repeat_noise=repeat_noise,
            noise_dropout=noise_dropout,
        )
        yield State(index, x, reverse.x0_hat)


def _gaussian(mean: Tensor, variance: Tensor, log_variance: Tensor) -> Gaussian:
    return Gaussian(mean, variance.expand_as(mean), log_variance.expand_as(mean))


def _second_first(values: Tensor) -> Tensor:
    return torch.cat([values[1:2], values[1:]])
