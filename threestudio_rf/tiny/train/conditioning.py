"""The conditioning kinds of latent diffusion (Rombach et al. 2022): where a condition enters the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder.architecture_sd import make_unet

Condition = Mapping[str, Tensor | Sequence[Tensor]]
Draw = Callable[[int, Generator], tuple[Tensor, dict[str, Tensor | Sequence[Tensor]]]]

KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "concat": ("concat",),
    "crossattn": ("crossattn",),
    "hybrid": ("concat", "crossattn"),
    "adm": ("adm",),
}
"""Which entries of a condition each kind reads."""


class Conditioned(nn.Module):
    """A UNet of `make_unet` with one kind of conditioning (DiffusionWrapper of CompVis/latent-diffusion).

    concat: maps (B, C', H, W), joined to x along channels, x first. crossattn: a list of tokens (B, n, d), joined along
    n, read by cross-attention. hybrid: both. adm: a vector (B, D), added to the embedded time. none: nothing.
    ValueError for an unknown kind or a network with other inputs.
    """

    def __init__(self, network: Any, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, _known(kind)
        config, wanted = network.config, KINDS[kind]
        has = {
            "concat": config.in_channels > config.out_channels,
            "crossattn": config.mid_block_type != "UNetMidBlock2D",
            "adm": config.class_embed_type == "projection",
        }
        if tuple(name for name in has if has[name]) != wanted:
            reads = [name for name in has if has[name]]
            raise ValueError(f"got a network that reads {reads}, expected {list(wanted)} for {kind}")

    def forward(self, x: Tensor, label: Tensor, condition: Condition) -> Tensor:
        """The network's output (B, C, H, W) at x (B, C, H, W) and the labels (B,) it hears for the times.

        ValueError for a missing or superfluous entry of the condition, or one of another shape.
        """
        if set(condition) != set(KINDS[self.kind]):
            raise ValueError(f"got conditions {sorted(condition)}, expected {list(KINDS[self.kind])} for {self.kind}")
        config, context, vector = self.network.config, None, None
        if "concat" in condition:
            size = (len(x), config.in_channels - x.shape[1], *x.shape[2:])
            x = torch.cat([x, _shaped(condition["concat"], size, "concat")], dim=1)
        if "crossattn" in condition:
            context = _joined(condition["crossattn"], len(x), config.cross_attention_dim)
        if "adm" in condition:
            vector = _shaped(condition["adm"], (len(x), config.projection_class_embeddings_input_dim), "adm")
        out: Tensor = self.network(x, label, context, class_labels=vector).sample
        return out


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"got kind {kind!r}, expected one of {', '.join(KINDS)}")
    return kind


def _shaped(value: Tensor | Sequence[Tensor], size: tuple[int, ...], name: str) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != size:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: got {got}, expected {size}")
    return value


def _joined(tokens: Tensor | Sequence[Tensor], batch: int, width: int) -> Tensor:
    if isinstance(tokens, Tensor) or not tokens:
        got = "a tensor" if isinstance(tokens, Tensor) else "no tokens"
        raise ValueError(f"crossattn: got {got}, expected a list of tokens ({batch}, n, {width})")
    for part in tokens:
        if part.ndim != 3 or (len(part), part.shape[2]) != (batch, width):
            raise ValueError(f"crossattn: got {tuple(part.shape)}, expected ({batch}, n, {width})")
    return torch.cat(list(tokens), dim=1)


def make_conditioned(
    kind: str,
    *,
    latent_channels: int = 3,
    sample_size: int = 8,
    concat: int = 1,
    text_width: int = 3,
    vector: int = 3,
    channels: Sequence[int] = (16,),
    seed: int = 0,
) -> Conditioned:
    """A fresh UNet for a kind, which reads its text in the middle only. Of C' = `concat`, d = `text_width` and
    D = `vector` it uses what the kind reads."""
    reads = KINDS[_known(kind)]
    network = make_unet(
        text_width if "crossattn" in reads else None,
        channels=channels,
        latent_channels=latent_channels,
        sample_size=sample_size,
        attention=(False,) * len(channels),
        extra_channels=concat if "concat" in reads else 0,
        class_width=vector if "adm" in reads else None,
        groups=4,
        seed=seed,
    )
    return Conditioned(network, kind)


def draw_toys(kind: str) -> Draw:
    """Toy images (B, 3, 8, 8) = colour + square, with the condition of a kind.

    The colour is uniform in [-3/4, 3/4]^3, the square is 4 x 4 at any of 25 places, 3/4 inside and -1/4 outside; both
    have the same variance, 3/16. concat gives the square (B, 1, 8, 8), crossattn the colour as two lists of tokens, one
    token of 4 times its value per channel, adm the colour as a vector.
    """
    reads = KINDS[_known(kind)]

    def draw_some(n: int, draw: Generator) -> tuple[Tensor, dict[str, Tensor | Sequence[Tensor]]]:
        colour = 1.5 * torch.rand(n, 3, generator=draw) - 0.75
        corner = torch.randint(5, (2, n, 1), generator=draw)
        row, column = ((torch.arange(8) >= start) & (torch.arange(8) < start + 4) for start in corner)
        square = (row[:, None, :, None] & column[:, None, None, :]).float() - 0.25
        tokens = torch.diag_embed(4 * colour)
        given = {"concat": square, "crossattn": [tokens[:, :1], tokens[:, 1:]], "adm": colour}
        return colour[:, :, None, None] + square, {name: given[name] for name in reads}

    return draw_some


class ConditionedPart:
    """Denoising under a condition: |x0_hat(x_t, t, condition) - x0|^2 on the straight path, t uniform in `t_min`..1.

    With t close to 1 almost all that can be known of x0 is in the condition.
    """

    def __init__(self, network: Conditioned, pairs: Draw, *, batch: int = 16, t_min: float = 0.9) -> None:
        self.name = f"conditioned_{network.kind}"
        self.network, self.pairs, self.batch, self.t_min = network, pairs, batch, t_min
        self.modules = nn.ModuleDict({"network": network})

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean over batch and elements."""
        x0, condition = self.pairs(self.batch, draw)
        return self.error(x0, condition, draw), {}

    def error(self, x0: Tensor, condition: Condition, draw: Generator) -> Tensor:
        """Mean squared error of x0_hat (a scalar) under a condition, right or wrong."""
        t = self.t_min + (1 - self.t_min) * torch.rand(len(x0), generator=draw)
        eps = torch.randn(x0.shape, generator=draw)
        found: Tensor = self.network(noise(x0, eps, rectified_flow(t)), 1000 * t, condition)
        return (found - x0).square().mean()


@torch.no_grad()
def held_out_errors(part: ConditionedPart, n: int, seed: int) -> tuple[float, float]:
    """Mean squared error of x0_hat on `n` new images with their own conditions, and with those of their neighbours,
    under the same noise."""
    x0, condition = part.pairs(n, generator(seed, 0, "held-out"))
    wrong = {name: _rolled(value) for name, value in condition.items()}
    errors = [part.error(x0, given, generator(seed, 1, "held-out")).item() for given in (condition, wrong)]
    return errors[0], errors[1]


def _rolled(value: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    return value.roll(1, 0) if isinstance(value, Tensor) else [part.roll(1, 0) for part in value]
