"""The exact denoiser of a Gaussian mixture: an oracle for every loss, inversion and guidance test, and a free prior.

p(x0) = sum_k w_k N(m_k, q^2). With var = alpha^2 q^2 + sigma^2 and r_k ~ w_k exp(-|x_t - alpha m_k|^2 / (2 var)):
x0_hat = sum_k r_k [m_k + (alpha q^2 / var) (x_t - alpha m_k)],  eps_hat = sum_k r_k (sigma / var) (x_t - alpha m_k),
the second being (x_t - alpha x0_hat) / sigma without its division. A condition is a subset of the modes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, join
from threestudio_rf.core.level import Schedule, rectified_flow
from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.sampling.pipeline import Formula, Pipeline


class GaussianPrior:
    """Closed-form prior. A prompt selects the modes whose names occur in it; one that names none selects all.

    Latents of C channels stand for pictures of C // 3 copies of red, green and blue in [-1, 1].
    """

    name = "gaussian"
    licence = "none (a formula, no weights)"
    time_shift = 1.0

    def __init__(
        self,
        means: Tensor,
        std: float,
        weights: Tensor | None = None,
        *,
        kind: Kind = "flow",
        schedule: Schedule = rectified_flow,
        names: Sequence[str] | None = None,
    ) -> None:
        """`means` (K, C, H, W), `std` >= 0 of every mode, `weights` (K,) (equal by default), `names` of the modes."""
        if means.ndim != 4 or std < 0:
            raise ValueError(f"means, std: got {tuple(means.shape)}, {std}, expected (K, C, H, W), at least 0")
        count = len(means)
        weights = torch.ones(count, dtype=means.dtype) if weights is None else weights
        names = [f"mode {k}" for k in range(count)] if names is None else list(names)
        if weights.shape != (count,) or len(names) != count:
            raise ValueError(f"weights, names: got {tuple(weights.shape)}, {len(names)}, expected {count} of each")
        self.kind, self.schedule, self.names = kind, schedule, names
        self.pipeline: Pipeline = Formula(schedule)
        self.means, self.std, self.log_weights = means, std, weights.log().to(means.device)
        self.latent_shape = (means.shape[1], means.shape[2], means.shape[3])

    def embed(self, prompts: list[str]) -> Condition:
        """Each prompt chooses the modes whose names occur in it, all of them where none does."""
        chosen = torch.tensor([[name in prompt for name in self.names] for prompt in prompts], dtype=torch.bool)
        chosen[~chosen.any(1)] = True
        return Condition({"modes": chosen.float()})

    def fits(self, text: str) -> bool:
        """Always: names are looked for in the whole text."""
        return True

    def between(self) -> GaussianPrior:
        """Itself: its levels are a formula's."""
        return self

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`kind` from the exact posterior means under the chosen modes: (B, C, h, w), (B,) -> (B, C, h, w)."""
        level = self.schedule(t)
        alpha, sigma = level.like(x_t[:, None])
        centred = x_t[:, None] - alpha * self.means.to(x_t)
        var = (alpha * self.std) ** 2 + sigma**2
        prior = self.log_weights.to(x_t) + condition.tensors["modes"].to(x_t).log()
        logits = prior - (centred**2 / (2 * var)).flatten(2).sum(2)
        share = logits.softmax(1)[:, :, None, None, None]
        x0 = (share * (self.means.to(x_t) + alpha * self.std**2 / var * centred)).sum(1)
        eps = (share * sigma / var * centred).sum(1)
        return join(self.kind, x0, eps, level)

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """Averages blocks of pixels; ValueError unless (H, W) is a multiple of the latent's and C one of 3."""
        channels, height, width = self.latent_shape
        if channels % 3 or image.shape[-2] % height or image.shape[-1] % width:
            raise ValueError(f"image: got {tuple(image.shape)}, expected multiples of {height} x {width}, C of 3")
        pooled = F.adaptive_avg_pool2d(image, (height, width))
        return 2 * pooled.repeat(1, channels // 3, 1, 1) - 1

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 3 k, h, w) as pictures (B, 3, h, w) in [0, 1]: the mean of their k copies."""
        copies: Tensor = latents.unflatten(1, (-1, 3)).mean(1)
        return ((copies + 1) / 2).clamp(0, 1)
