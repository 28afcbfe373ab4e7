"""What is seen where there is nothing: functions of the ray direction, (N, 3) unit vectors -> rgb (N, 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threestudio_rf.scenes.camera import drawn, sent
from threestudio_rf.scenes.field import mlp


class SolidBackground(nn.Module):
    """One fixed colour."""

    def __init__(self, rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        if len(rgb) != 3:
            raise ValueError(f"a background colour is (r, g, b), got {rgb}")
        self.register_buffer("rgb", torch.tensor(rgb, dtype=torch.float32))
        self.rgb: Tensor

    def forward(self, directions: Tensor) -> Tensor:
        return self.rgb.expand(len(directions), 3)


class EnvironmentBackground(nn.Module):
    """A learned environment map: a small network on sines and cosines of the direction."""

    def __init__(self, *, frequencies: int = 3, hidden: int = 16, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.network = mlp(3 + 6 * frequencies, hidden, 1, 3, generator)

    def forward(self, directions: Tensor) -> Tensor:
        angles = [directions * 2.0**k for k in range(self.frequencies)]
        waves = [wave(a) for a in angles for wave in (torch.sin, torch.cos)]
        return torch.sigmoid(self.network(torch.cat([directions, *waves], dim=-1)))


def behind(
    own: Callable[[], Tensor],
    directions: Tensor,
    generator: torch.Generator | None,
    random: float,
    part: tuple[int, int] = (0, 1),
) -> Tensor:
    """Colours (B, H, W, 3) behind the object for ray directions (B, H, W, 3): those of `own`, of that shape; with a
    generator and probability `random` one flat random colour per view. `part` is the cameras'."""
    draws = None if generator is None else drawn(len(directions), 4, generator, part)
    if draws is None or not bool((draws[:, 3] < random).any()):
        return own()
    flat = sent(draws[:, :3].to(directions.dtype), directions.device)[:, None, None, :].expand_as(directions)
    chosen = draws[:, 3] < random
    if bool(chosen.all()):
        return flat
    return torch.where(sent(chosen, directions.device)[:, None, None, None], flat, own())
