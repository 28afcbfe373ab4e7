"""A perceptual distance that needs no download: features of the project's own judge, compared as in LPIPS."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from threestudio_rf.tiny.judge import Judge


class JudgeDistance:
    """Distance (B,) of two batches of images (B, 3, H, W) in [-1, 1].

    At every activation of the judge, features are normalised over channels, their squared difference is summed over
    channels and averaged over space; the layers are averaged (Zhang et al. 2018 with equal weights). A first stage
    trained with it has seen the judge, whose figures on it are then no longer independent.
    """

    def __init__(self, judge: Judge) -> None:
        self.body = copy.deepcopy(judge.body).eval().requires_grad_(False)

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        distances = []
        for layer in self.body:
            one, other = layer(one), layer(other)
            if isinstance(layer, nn.SiLU):
                first, second = (x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt() for x in (one, other))
                distances.append((first - second).square().sum(1).mean(dim=(1, 2)))
        return torch.stack(distances).mean(0)
