"""The first stage of the embedded priors: a KL autoencoder (Rombach et al. 2022) of the tiny world's images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.random import generator
from threestudio_rf.tiny.world import COLOURS, Views, random_backgrounds


def palette() -> Tensor:
    """The ten named colours (10, 3)."""
    return torch.tensor(list(COLOURS.values()))


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


class FirstStage:
    """Reconstruction in L1 and L2 plus KL to N(0, I), all means per element."""

    name = "vae"

    def __init__(self, vae: Any, world: Views, *, batch: int = 8, kl: float = 1e-4, autocast: bool = True) -> None:
        self.vae = vae.to(memory_format=torch.channels_last)
        self.modules = nn.ModuleDict({"vae": vae})
        self.world, self.batch, self.kl, self.autocast = world, batch, kl, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """L1 / 2 + 4 MSE + kl * KL on images in [-1, 1], through a posterior sample."""
        image = draw_images(self.world, self.batch, draw, named=0.7, solid=0.85) * 2 - 1
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            posterior = self.vae.encode(image).latent_dist
            mean, std, logvar = posterior.mean.float(), posterior.std.float(), posterior.logvar.float()
            latent = mean + std * torch.randn(mean.shape, generator=draw)
            output = self.vae.decode(latent).sample.float()
        error = output - image
        mse = (error**2).mean()
        kl = 0.5 * (mean**2 + std**2 - 1 - logvar).mean()
        psnr = -10 * torch.log10(mse.detach() / 4)
        return 0.5 * error.abs().mean() + 4 * mse + self.kl * kl, {"psnr": psnr.item(), "kl": kl.item()}


@torch.no_grad()
def reconstruction_psnr(vae: Any, world: Views, n: int, seed: int, *, batch: int = 50) -> Tensor:
    """PSNR (n,) in dB of each of `n` images of named colour after encode and decode, outputs clamped to [0, 1]."""
    values = []
    for number, start in enumerate(range(0, n, batch)):
        image = draw_images(world, min(batch, n - start), generator(seed, number, "held-out"))
        output = vae.decode(vae.encode(image * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        values.append(-10 * torch.log10(((output.clamp(0, 1) - image) ** 2).mean(dim=(1, 2, 3))))
    return torch.cat(values)


@torch.no_grad()
def latent_statistics(vae: Any, world: Views, seed: int, *, n: int = 2048, batch: int = 64) -> tuple[float, float]:
    """(shift, scale) that make latents of the world zero-mean with unit variance over all elements."""
    parts = [
        vae.encode(draw_images(world, batch, generator(seed, i, "statistics")) * 2 - 1).latent_dist.mode()
        for i in range(n // batch)
    ]
    latents = torch.cat(parts)
    return latents.mean().item(), 1 / latents.std().item()
