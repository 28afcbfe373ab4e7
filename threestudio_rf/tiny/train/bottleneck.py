"""What lies between encoder and decoder of a first stage: a Gaussian posterior or a codebook (Rombach et al. 2022)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.random import normal


class Posterior(NamedTuple):
    """Diagonal Gaussian of every latent, mean and log-variance (B, ...). A deterministic one has no spread: its sample
    is the mean, its divergences and negative log-likelihood are 0."""

    mean: Tensor
    logvar: Tensor
    deterministic: bool = False

    def sample(self, draw: Generator) -> Tensor:
        """mean + std z, z standard normal."""
        if self.deterministic:
            return self.mean
        z = normal(self.mean.shape, draw, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * z

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def kl(self, other: Posterior | None = None) -> Tensor:
        """KL(self || other) in nats (B,), summed over elements; None is N(0, I):
        0.5 sum(mean^2 + var - 1 - logvar). ValueError for another shape or a deterministic other."""
        if other is None:
            other = Posterior(torch.zeros_like(self.mean), torch.zeros_like(self.logvar))
        if other.mean.shape != self.mean.shape or other.deterministic:
            raise ValueError(
                f"got {tuple(other.mean.shape)}, deterministic {other.deterministic}, expected {tuple(self.mean.shape)}"
            )
        distance = (self.mean - other.mean).square() / other.logvar.exp()
        ratio = self.logvar - other.logvar
        return self._sum(0.5 * (distance + ratio.exp() - 1 - ratio))

    def nll(self, x: Tensor) -> Tensor:
        """-log p(x) in nats (B,), summed over elements; ValueError for another shape."""
        if x.shape != self.mean.shape:
            raise ValueError(f"got {tuple(x.shape)}, expected {tuple(self.mean.shape)}")
        distance = (x - self.mean).square() / self.logvar.exp()
        return self._sum(0.5 * (math.log(2 * math.pi) + self.logvar + distance))

    def _sum(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(values)) if self.deterministic else values.flatten(1).sum(1)


class Quantised(NamedTuple):
    """Nearest entries (B, C, H, W), their rows in the codebook (B, H, W), and the loss of codebook and encoder."""

    latent: Tensor
    code: Tensor
    loss: Tensor


def quantise(z: Tensor, codebook: Tensor, *, commitment: float = 0.25) -> Quantised:
    """Every vector of z (B, C, H, W) replaced by the nearest row of the codebook (K, C) (van den Oord et al. 2017).

    The latent passes its gradient straight to z and none to the codebook. The loss is
    mean |sg(z) - e|^2 + commitment mean |z - sg(e)|^2 over elements. taming-transformers by default ("legacy") has the
    commitment weight at the first term instead. ValueError when C differs.
    """
    if z.ndim != 4 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f"got z {tuple(z.shape)}, codebook {tuple(codebook.shape)}, expected (B, C, H, W) and (K, C)")
    flat = z.movedim(1, -1)
    index = torch.cdist(flat.reshape(-1, z.shape[1]).detach(), codebook.detach()).argmin(1).view(flat.shape[:-1])
    entry = codebook[index].movedim(-1, 1)
    loss = (entry - z.detach()).square().mean() + commitment * (z - entry.detach()).square().mean()
    return Quantised(z + (entry - z).detach(), index, loss)
