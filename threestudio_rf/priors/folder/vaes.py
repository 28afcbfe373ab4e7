"""The autoencoders of diffusers by class: latents of what an encoder says, and back.

z is (B, C, h, w), images are (B, 3, H, W) in [-1, 1]; latents are (z - shift) scale.

| class                  | z                                     | scale, shift                                      |
|------------------------|---------------------------------------|---------------------------------------------------|
| AutoencoderKL          | the posterior's mode, or a sample     | scaling_factor, shift_factor; SDXL's std and mean |
| AutoencoderTiny        | `.latents`                            | scaling_factor, shift_factor                      |
| AutoencoderDC          | `.latent`, without a posterior        | scaling_factor                                    |
| AutoencoderKLFlux2     | 2 x 2 latents of the mode as channels | of its batch norm                                 |
| AutoencoderKLQwenImage | the mode of one frame                 | latents_std, latents_mean                         |
| AutoencoderKLWan       | the same                              | the same                                          |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

Scale = tuple[Tensor | float, Tensor | float]


class Recomputed(nn.Module):
    """A layer that keeps only its input for backward and computes the rest again."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        run: Callable[[Tensor], Tensor] = self.layer
        return checkpoint(run, x, use_reentrant=False) if torch.is_grad_enabled() else run(x)


def _drawn(moments: Tensor, generator: Generator | None) -> Tensor:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    posterior = DiagonalGaussianDistribution(moments)
    z: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
    return z


def _moments(vae: Any, x: Tensor) -> Tensor:
    moments: Tensor = vae.encode(x).latent_dist.parameters
    return moments


def _decoded(vae: Any, z: Tensor) -> Tensor:
    image: Tensor = vae.decode(z).sample
    return image


def _factors(vae: Any) -> Scale:
    """By the config; SDXL's finetunes have a mean and deviation per channel besides, as in its pipeline."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.scaling_factor, config.get("shift_factor") or 0.0
    return config.scaling_factor / _channels(std), _channels(mean)


def _channels(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[None, :, None, None]


def _norm(vae: Any) -> Scale:
    mean, variance = (x.float()[None, :, None, None] for x in (vae.bn.running_mean, vae.bn.running_var))
    return 1 / (variance + vae.config.batch_norm_eps).sqrt(), mean


def _wrap_down_blocks(vae: Any) -> None:
    vae.encoder.down_blocks = nn.ModuleList(Recomputed(block) for block in vae.encoder.down_blocks)


def _wrap_layers(vae: Any) -> None:
    vae.encoder.layers = nn.Sequential(*(Recomputed(layer) for layer in vae.encoder.layers))


def _frame(vae: Any, x: Tensor) -> Tensor:
    """Moments (B, 2 C, 1, h, w) of one frame. A video's encoder keeps features of its last frames for the next ones;
    one frame has none, and without them its blocks can be computed again."""
    moments: Tensor = vae.quant_conv(vae.encoder(x[:, :, None]))
    return moments


def _own_flag(vae: Any) -> None:
    vae.enable_gradient_checkpointing()


@dataclass(frozen=True)
class Codec:
    """`said` is what the encoder says of an image, `drawn` z of it, `decoded` an image of z, `factors` (scale, shift).
    `recompute` makes the encoder keep less for backward, in place; latents and gradients stay as they are."""

    said: Callable[[Any, Tensor], Tensor]
    drawn: Callable[[Tensor, Generator | None], Tensor]
    decoded: Callable[[Any, Tensor], Tensor]
    factors: Callable[[Any], Scale]
    recompute: Callable[[Any], None]


FRAME = Codec(
    _frame,
    lambda moments, generator: _drawn(moments, generator)[:, :, 0],
    lambda vae, z: _decoded(vae, z[:, :, None])[:, :, 0],
    lambda vae: (1 / _channels(vae.config.latents_std), _channels(vae.config.latents_mean)),
    _wrap_down_blocks,
)

CODECS: dict[str, Codec] = {
    "AutoencoderKL": Codec(_moments, _drawn, _decoded, _factors, _own_flag),
    # AutoencoderTiny's own flag must not be used: with it EncoderTiny leaves out its map from [-1, 1] to [0, 1]
    # (diffusers 0.40 to 0.42.1 at least)
    "AutoencoderTiny": Codec(lambda vae, x: vae.encode(x).latents, lambda z, _: z, _decoded, _factors, _wrap_layers),
    "AutoencoderDC": Codec(lambda vae, x: vae.encode(x).latent, lambda z, _: z, _decoded, _factors, _wrap_down_blocks),
    "AutoencoderKLFlux2": Codec(
        _moments,
        lambda moments, generator: F.pixel_unshuffle(_drawn(moments, generator), 2),
        lambda vae, z: _decoded(vae, F.pixel_shuffle(z, 2)),
        _norm,
        _own_flag,
    ),
    "AutoencoderKLQwenImage": FRAME,
    "AutoencoderKLWan": FRAME,
}
PIXELS = Codec(lambda _, x: x, lambda z, _: z, lambda _, z: z, lambda _: (1.0, 0.0), lambda _: None)
"""Of a prior without a VAE: its latents are the picture."""
