"""The first stage of the embedded priors: a KL autoencoder (Rombach et al. 2022) of the tiny world's images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.random import generator
from threestudio_rf.tiny.train.discriminator import Adversary, PatchDiscriminator, Posterior, adaptive_weight
from threestudio_rf.tiny.train.training import device_of, half
from threestudio_rf.tiny.world.views import COLOURS, Views, palette, random_backgrounds


def draw_images(world: Views, n: int, draw: Generator, *, named: float = 1.0, solid: float = 1.0) -> Tensor:
    """`n` images (n, 3, H, W) of random views. A share `named` of them has a named colour, the others any colour; a
    share `solid` is opaque, the others let their background through, as a half-grown NeRF does."""
    index = torch.randint(len(world.shape), (n,), generator=draw)
    colour = palette()[torch.randint(len(COLOURS), (n,), generator=draw)]
    free = torch.rand(n, 1, generator=draw) >= named
    colour = torch.where(free, torch.rand(n, 3, generator=draw), colour)
    views = world.select(index)
    thin = torch.rand(n, generator=draw) >= solid
    opacity = torch.where(thin, 0.1 + 0.9 * torch.rand(n, generator=draw), torch.ones(n))
    mask = (views.mask.float() * opacity[:, None, None, None]).round().byte()
    return views._replace(mask=mask).images(colour, random_backgrounds(colour, draw))


@torch.no_grad()
def pyramid_start(vae: Any, latent_channels: int, seed: int) -> None:
    """Start an autoencoder as a linear image pyramid, in place.

    From its default initialisation it stays for about a thousand steps at the mean colour, because the group norms
    hide the absolute level of flat regions. Here the residual branches start at zero, the convolutions of the skip
    path carry the picture through, random biases give the norms a reference level, and the posterior starts narrow.
    """
    draw = generator(seed, 0, "pyramid start")
    convolutions = {name: module for name, module in vae.named_modules() if isinstance(module, nn.Conv2d)}
    for name, convolution in convolutions.items():
        weight, bias = convolution.weight, convolution.bias
        assert bias is not None
        if name.endswith("conv2"):
            nn.init.zeros_(weight)
            nn.init.zeros_(bias)
        elif any(part in name for part in ("sampler", "conv_in", "conv_out", "shortcut")):
            weight.mul_(0.7).add_(nn.init.dirac_(torch.zeros_like(weight)))
        if name.endswith("conv_in"):
            bias.copy_(torch.randn(bias.shape, generator=draw))
    last = vae.encoder.conv_out
    last.weight[latent_channels:].zero_()
    last.bias[latent_channels:].fill_(-6.0)


class Pass(NamedTuple):
    """Images and their reconstructions (B, 3, H, W) in [-1, 1], through a sample of the posterior (B, C, h, w)."""

    image: Tensor
    output: Tensor
    mean: Tensor
    std: Tensor
    logvar: Tensor


def autoencode(vae: Any, world: Views, n: int, draw: Generator, *, autocast: bool = True) -> Pass:
    """`n` random training images encoded and decoded; `autocast` computes in bfloat16. All results are float32."""
    device = device_of(vae)
    image = (draw_images(world, n, draw, named=0.7, solid=0.85) * 2 - 1).to(device)
    image = image.contiguous(memory_format=torch.channels_last)
    with half(device, autocast):
        posterior = vae.encode(image).latent_dist
        mean, std, logvar = posterior.mean.float(), posterior.std.float(), posterior.logvar.float()
        latent = mean + std * torch.randn(mean.shape, generator=draw).to(device)
        output = vae.decode(latent).sample.float()
    return Pass(image, output, mean, std, logvar)


class FirstStage:
    """Reconstruction in L1 and L2 plus KL to N(0, I), all means per element."""

    name = "vae"

    def __init__(self, vae: Any, world: Views, *, batch: int = 8, kl: float = 1e-4, autocast: bool = True) -> None:
        self.vae = vae.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"vae": vae})
        self.world, self.batch, self.kl, self.autocast = world, batch, kl, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """L1 / 2 + 4 MSE + kl * KL on images in [-1, 1], through a posterior sample."""
        image, output, mean, std, logvar = autoencode(self.vae, self.world, self.batch, draw, autocast=self.autocast)
        error = output - image
        mse = (error**2).mean()
        kl = 0.5 * (mean**2 + std**2 - 1 - logvar).mean()
        psnr = -10 * torch.log10(mse.detach() / 4)
        return 0.5 * error.abs().mean() + 4 * mse + self.kl * kl, {"psnr": psnr.item(), "kl": kl.item()}


Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Terms:
    """The autoencoder's own loss, in the form of latent diffusion.

    The error of an element is absolute |d| + squared d^2 + perceptual p, p one number per image; its negative
    log-likelihood is error exp(-s) + s, with one output log-variance s, learned or 0. "sum" is latent diffusion's: all
    elements of an image are summed and divided by B, the KL too (its kl is 1e-6). "mean" divides the one by the M
    elements of an image, the other by the m of a latent: the same gradient over M where its kl is that of "sum" times
    m / M.
    """

    absolute: float = 1.0
    squared: float = 0.0
    perceptual: float = 0.0
    kl: float = 1e-4
    reduction: Literal["mean", "sum"] = "mean"
    learn_logvar: bool = False

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"got reduction {self.reduction!r}, expected mean or sum")

    def nll(self, image: Tensor, output: Tensor, logvar: Tensor, *, distance: Distance | None = None) -> Tensor:
        """The reconstruction term, a scalar, of images (B, C, H, W) in [-1, 1]."""
        difference = output - image
        error = self.absolute * difference.abs() + self.squared * difference.square()
        if distance is not None:
            error = error + self.perceptual * distance(image, output)[:, None, None, None]
        return self._reduce((error * torch.exp(-logvar) + logvar).flatten(1).sum(1), image)

    def divergence(self, posterior: Posterior) -> Tensor:
        """KL to N(0, I), a scalar, without its weight."""
        return self._reduce(posterior.kl(), posterior.mean)

    def _reduce(self, sums: Tensor, x: Tensor) -> Tensor:
        return sums.mean() / (x[0].numel() if self.reduction == "mean" else 1)


class AdversarialFirstStage:
    """Latent diffusion's first stage: nll + kl KL + factor (w g + d), see `Terms` and `Adversary`.

    Autoencoder and discriminator share one optimiser, each with its own gradient only: the generator's loss g holds the
    discriminator fixed, the discriminator's loss d the pictures. w is the adaptive weight at the decoder's last
    convolution. Before the adversary's start, and without one, the loss is nll + kl KL. A clipped gradient norm is that
    of both networks together, one common factor.
    """

    name = "vae_adversarial"

    def __init__(
        self,
        vae: Any,
        world: Views,
        *,
        adversary: Adversary | None = None,
        terms: Terms = Terms(),
        distance: Distance | None = None,
        batch: int = 8,
        autocast: bool = True,
    ) -> None:
        if (distance is None) != (terms.perceptual == 0):
            raise ValueError(f"got perceptual {terms.perceptual} and distance {distance}, expected both or neither")
        self.vae = vae.to(memory_format=torch.channels_last)
        self.logvar = nn.Parameter(torch.zeros((), device=device_of(vae)), requires_grad=terms.learn_logvar)
        self.modules = nn.ModuleDict({"vae": vae, "output": nn.ParameterDict({"logvar": self.logvar})})
        if adversary is not None:
            self.modules["discriminator"] = adversary.discriminator
        self.world, self.adversary, self.terms, self.distance = world, adversary, terms, distance
        self.batch, self.autocast = batch, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """The scalar whose gradient is each network's own, and the figures of the batch."""
        image, output, mean, _, logvar = autoencode(self.vae, self.world, self.batch, draw, autocast=self.autocast)
        nll = self.terms.nll(image, output, self.logvar, distance=self.distance)
        kl = self.terms.divergence(Posterior(mean, logvar))
        loss = nll + self.terms.kl * kl
        figures = {"psnr": psnr(output / 2, image / 2).mean().item(), "kl": kl.item(), "nll": nll.item()}
        figures |= dict.fromkeys(("g", "d", "weight", "real", "fake"), 0.0)
        if self.adversary is None or step < self.adversary.start:
            return loss, figures
        with half(device_of(self.vae), self.autocast):
            g, d, logits = self.adversary.losses(image, output)
        weight = self.adversary.weight * adaptive_weight(nll, g, self.vae.decoder.conv_out.weight)
        loss = loss + self.adversary.factor * (weight * g + d)
        return loss, figures | {"g": g.item(), "d": d.item(), "weight": weight.item()} | logits


@dataclass(frozen=True)
class Sharpening:
    """What an adversarial first stage is trained with: the `loss` of a patch discriminator that plays from step `start`
    with `weight` times the adaptive weight, and a `perceptual` term where that is above 0."""

    loss: str = "hinge"
    start: int = 0
    weight: float = 0.5
    perceptual: float = 0.0

    def part(
        self, vae: Any, world: Views, *, batch: int, seed: int, distance: Distance | None = None
    ) -> AdversarialFirstStage:
        """The training part: reconstruction and KL weighted as in `FirstStage`, a discriminator of 34-pixel patches."""
        discriminator = PatchDiscriminator(width=32, layers=2, seed=seed).to(device_of(vae))
        return AdversarialFirstStage(
            vae,
            world,
            adversary=Adversary(discriminator, self.loss, start=self.start, weight=self.weight),
            terms=Terms(absolute=0.5, squared=4.0, perceptual=self.perceptual),
            distance=distance,
            batch=batch,
        )


def psnr(output: Tensor, image: Tensor) -> Tensor:
    """10 log10(1 / mean squared error) in dB (B,), for a range of values of 1."""
    return -10 * torch.log10((output - image).square().flatten(1).mean(1))


def gradient_energy(image: Tensor) -> Tensor:
    """(B,): mean squared difference of neighbours, along x plus along y, of images (B, C, H, W)."""
    down, across = (image.diff(dim=dim).square().mean(dim=(1, 2, 3)) for dim in (2, 3))
    return down + across


def sharpness(output: Tensor, image: Tensor) -> Tensor:
    """Gradient energy of the reconstructions over that of the originals (B,): 1 is as sharp, less is blurred."""
    return gradient_energy(output) / gradient_energy(image)


@torch.no_grad()
def reconstructions(vae: Any, world: Views, n: int, seed: int, *, batch: int = 50) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of held-out images of named colour and what encode and decode make of them, in [0, 1]."""
    for number, start in enumerate(range(0, n, batch)):
        image = draw_images(world, min(batch, n - start), generator(seed, number, "held-out"))
        output = vae.decode(vae.encode(image.to(device_of(vae)) * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        yield image, output.clamp(0, 1).cpu()


def reconstruction_psnr(vae: Any, world: Views, n: int, seed: int, *, batch: int = 50) -> Tensor:
    """PSNR (n,) in dB of each of `n` images of named colour after encode and decode, outputs clamped to [0, 1]."""
    return torch.cat([psnr(output, image) for image, output in reconstructions(vae, world, n, seed, batch=batch)])


@torch.no_grad()
def latent_statistics(vae: Any, world: Views, seed: int, *, n: int = 2048, batch: int = 64) -> tuple[float, float]:
    """(shift, scale) that make latents of the world zero-mean with unit variance over all elements."""
    device = device_of(vae)
    parts = [
        vae.encode(draw_images(world, batch, generator(seed, i, "statistics")).to(device) * 2 - 1).latent_dist.mode()
        for i in range(n // batch)
    ]
    latents = torch.cat(parts)
    return latents.mean().item(), 1 / latents.std().item()
