"""The embedded SD3: a rectified flow (Liu et al. 2022; Esser et al. 2024) on latents of the tiny world."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.convert import join, noise
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.times import draw as draw_times
from threestudio_rf.tiny.train.denoise import expected
from threestudio_rf.tiny.train.latents import CaptionedLatents
from threestudio_rf.tiny.train.training import compiled, device_of, half


def embed_tokens(encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """SD3's text input from token ids (B, T) per encoder: joined hidden_states[-2] (B, T, D) and pooled (B, P)."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder, tokens in zip(encoders, ids, strict=True)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


class FlowPart:
    """Velocity matching |u_hat(x_t, t, caption) - (eps - x0)|^2 with logit-normal t and the means of `expected`; text
    encoders train along."""

    name = "sd3"

    def __init__(
        self,
        transformer: nn.Module,
        encoders: Sequence[nn.Module],
        data: CaptionedLatents,
        *,
        batch: int = 128,
        autocast: bool = True,
    ) -> None:
        self.modules = nn.ModuleDict({"transformer": transformer, "one": encoders[0], "two": encoders[1]})
        self.transformer, self.encoders = compiled(transformer), list(encoders)
        self.data, self.batch, self.autocast = data, batch, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the velocity, over elements and batch."""
        device = device_of(self.modules)
        x0, ids, rows = self.data.draw(self.batch, draw)
        t = draw_times(self.batch, draw, t_min=0.0, t_max=1.0, law="logit_normal").to(device)
        eps = torch.randn(x0.shape, generator=draw).to(device)
        x0, level = x0.to(device), rectified_flow(t)
        aim = expected(self.data, x0, eps, level, rows)
        with half(device, self.autocast):
            hidden, pooled = embed_tokens(self.encoders, [tokens.to(device) for tokens in ids])
            u_hat = self.transformer(
                hidden_states=noise(x0, eps, level),
                timestep=1000 * t,
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        error = (u_hat.float() - join("flow", *aim, level)).square().mean(dim=(1, 2, 3))
        late = t > 0.5
        return error.mean(), {"noisy": error[late].mean().item(), "clean": error[~late].mean().item()}
