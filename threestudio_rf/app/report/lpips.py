"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) from weights that a user has: torchvision's features and the authors'
linear layers, read from one folder; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from threestudio_rf.app.errors import UserError, user_path

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Fire(nn.Module):
    """SqueezeNet's block, with torchvision's names."""

    def __init__(self, wide: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(wide, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def alexnet() -> nn.Sequential:
    """The features of torchvision's AlexNet."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for wide, wider in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(wide, wider, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def squeezenet() -> nn.Sequential:
    """The features of torchvision's SqueezeNet 1.1."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()]
    layers += [Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
    layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(*layers)


class Net(NamedTuple):
    """A network, the layers that are compared, and the names of its two files."""

    features: nn.Sequential
    taps: tuple[int, ...]
    files: tuple[str, str]


def nets() -> dict[str, Net]:
    """alex, and squeeze, which PIE-Bench uses."""
    return {
        "alex": Net(alexnet(), (1, 4, 7, 9, 11), ("alexnet*.pth", "alex.pth")),
        "squeeze": Net(squeezenet(), (1, 4, 7, 9, 10, 11, 12), ("squeezenet1_1*.pth", "squeeze.pth")),
    }


class LPIPS:
    """Distance (B,) of two batches of pictures (B, 3, H, W) in [0, 1]."""

    def __init__(self, net: Net, weights: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
        own = {name.removeprefix("features."): x for name, x in weights.items() if name.startswith("features.")}
        net.features.load_state_dict(own)
        self.features, self.taps = net.features.eval().requires_grad_(False), net.taps
        self.linear = [linear[f"lin{i}.model.1.weight"] for i in range(len(net.taps))]

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        shift, scale = (one.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x, y = ((2 * picture - 1 - shift) / scale for picture in (one, other))
        total, found = one.new_zeros(len(one)), iter(self.linear)
        for number, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if number in self.taps:
                gap = (_unit(x) - _unit(y)).square()
                total = total + (gap * next(found).to(gap)).sum(1).mean((1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(folder: Path | str, net: str = "") -> LPIPS:
    """LPIPS of `net`, or of the first of alex and squeeze whose files lie in `folder`; UserError when none does."""
    root = user_path(folder, "edit.lpips")
    for name, one in nets().items():
        files = [sorted(file for file in root.glob(pattern) if file.is_file()) for pattern in one.files]
        if net in ("", name) and all(files):
            try:
                return LPIPS(one, *(torch.load(found[0], weights_only=True, map_location="cpu") for found in files))
            except Exception as error:  # torch raises many kinds for a file that holds something else
                reason = str(error).strip().splitlines()[:1]
                raise UserError(f"{root}: the weights of LPIPS cannot be used ({''.join(reason)[:200]})") from None
    wanted = " or ".join(" and ".join(one.files) for name, one in nets().items() if net in ("", name))
    raise UserError(f"{root}: no weights of LPIPS, expected {wanted}")
