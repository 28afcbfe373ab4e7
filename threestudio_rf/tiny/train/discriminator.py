"""Bottleneck and adversary of the first stage (Esser et al. 2021; Rombach et al. 2022): a Gaussian or a codebook
between encoder and decoder, and the adversarial half: patches, losses, adaptive weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.func import functional_call

from threestudio_rf.core.random import normal
from threestudio_rf.priors.folder.architecture import seeded


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


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): a logit for every patch, high where the picture is taken for real.

    4 x 4 convolutions: `layers` of stride 2 and two of stride 1; widths double from `width` up to 8 times it; batch
    norm on all but the first and last. Patches are 16, 34, 70, 142 pixels wide for 1, 2, 3, 4 `layers`. A `condition`
    of that many channels is joined to the picture. Weights start as N(0, 0.02), those of the norms as N(1, 0.02).
    """

    def __init__(
        self, channels: int = 3, *, condition: int = 0, width: int = 64, layers: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"got {layers} layers, expected at least 1")
        self.channels, self.condition = channels, condition
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        with seeded(seed):
            body: list[nn.Module] = [nn.Conv2d(channels + condition, width, 4, 2, 1), nn.LeakyReLU(0.2)]
            for i in range(1, layers + 1):
                stride = 2 if i < layers else 1
                body += [nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False), nn.BatchNorm2d(widths[i])]
                body += [nn.LeakyReLU(0.2)]
            self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, 1, 1))
            for module in self.body:
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)

    def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
        """Logits (B, 1, h, w) of images (B, C, H, W) and conditions (B, C', H, W)."""
        given = 0 if condition is None else condition.shape[1]
        if image.shape[1] != self.channels or given != self.condition:
            raise ValueError(
                f"got {image.shape[1]} channels and a condition of {given}, "
                f"expected {self.channels} and {self.condition}"
            )
        logits: Tensor = self.body(image if condition is None else torch.cat([image, condition], dim=1))
        return logits


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2 of the discriminator's logits (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Half the cross-entropy, (mean log(1 + e^-real) + mean log(1 + e^fake)) / 2 (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def adaptive_weight(nll: Tensor, g: Tensor, last: Tensor) -> Tensor:
    """|d nll / d last| / (|d g / d last| + 1e-4), clamped to [0, 1e4], detached: it makes both terms pull equally hard
    at the decoder's last weights `last` (Esser et al. 2021, eq. 7)."""
    of_nll, of_g = (torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (nll, g))
    weight: Tensor = of_nll / (of_g + 1e-4)
    return weight.clamp(0, 1e4).detach()


def generator_loss(discriminator: nn.Module, image: Tensor, condition: Tensor | None = None) -> Tensor:
    """-mean logit, with a gradient for the image alone: neither weights nor running statistics of the discriminator
    are reached, so the sum of this and the discriminator's loss gives each network its own gradient."""
    state = {name: value.detach() for name, value in discriminator.named_parameters()}
    state |= {name: value.clone() for name, value in discriminator.named_buffers()}
    logits: Tensor = functional_call(discriminator, state, (image, condition))
    return -logits.float().mean()


@dataclass(frozen=True)
class Adversary:
    """A discriminator and how it takes part: from step `start`, with `factor` for both sides and `weight` times the
    adaptive weight for the autoencoder. `condition` makes from the true pictures what it sees beside both."""

    discriminator: PatchDiscriminator
    loss: str = "hinge"
    start: int = 0
    factor: float = 1.0
    weight: float = 0.5
    condition: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"got loss {self.loss!r}, expected one of {', '.join(LOSSES)}")

    def losses(self, image: Tensor, output: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(the generator's loss, the discriminator's loss, mean logits) of true and reconstructed pictures."""
        condition = None if self.condition is None else self.condition(image).detach()
        g = generator_loss(self.discriminator, output, condition)
        real = self.discriminator(image.detach(), condition).float()
        fake = self.discriminator(output.detach(), condition).float()
        return g, LOSSES[self.loss](real, fake), {"real": real.mean().item(), "fake": fake.mean().item()}
