"""The adversarial half of a first stage (Esser et al. 2021; Rombach et al. 2022): patches, losses, adaptive weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from threestudio_rf.priors.architecture import seeded


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
        return self.body(image if condition is None else torch.cat([image, condition], dim=1))


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
    return (of_nll / (of_g + 1e-4)).clamp(0, 1e4).detach()


def generator_loss(discriminator: nn.Module, image: Tensor, condition: Tensor | None = None) -> Tensor:
    """-mean logit, with a gradient for the image alone: neither weights nor running statistics of the discriminator
    are reached, so the sum of this and the discriminator's loss gives each network its own gradient."""
    state = {name: value.detach() for name, value in discriminator.named_parameters()}
    state |= {name: value.clone() for name, value in discriminator.named_buffers()}
    return -functional_call(discriminator, state, (image, condition)).float().mean()


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
