"""Training of the judge: true views softened as a NeRF softens them, some bent until they are no shape any more; and a
perceptual distance from its features, compared as in LPIPS, which needs no download."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from threestudio_rf.tiny.train.data.failures import BROKEN, WHOLE, Failures, bent
from threestudio_rf.tiny.train.training import device_of
from threestudio_rf.tiny.world.judge import Judge, Verdict
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, Views, palette, random_backgrounds


def soften(images: Tensor, draw: Generator) -> Tensor:
    """Each image blurred with probability 1/2 (Gaussian, std up to 1.5 px), then noise of std up to 0.06."""
    n = len(images)
    blurred = torch.rand(n, generator=draw) < 0.5
    std = 0.3 + 1.2 * torch.rand(n, generator=draw)
    x = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (x / std[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    flat = images.transpose(0, 1)
    soft = F.conv2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), kernel[:, None, :, None], groups=n)
    soft = F.conv2d(soft, kernel[:, None, None, :], groups=n).transpose(0, 1)
    images = torch.where(blurred[:, None, None, None], soft, images)
    strength = 0.06 * torch.rand(n, 1, 1, 1, generator=draw)
    return (images + strength * torch.randn(images.shape, generator=draw)).clamp(0, 1)


class Labelled(NamedTuple):
    """Images (B, 3, H, W) with indices of shape, colour and view word (B,), and coverage (B, 1, H, W)."""

    image: Tensor
    shape: Tensor
    colour: Tensor
    view: Tensor
    mask: Tensor


def draw_labelled(world: Views, n: int, draw: Generator, *, thin: float = 0.0) -> Labelled:
    """`n` random views in named colours; a share `thin` lets up to 40 % of the background through."""
    views = world.select(torch.randint(len(world.shape), (n,), generator=draw))
    colour = torch.randint(len(COLOURS), (n,), generator=draw)
    see_through = torch.rand(n, generator=draw) < thin
    opacity = torch.where(see_through, 0.6 + 0.4 * torch.rand(n, generator=draw), torch.ones(n))
    mask = (views.mask.float() * opacity[:, None, None, None]).round().byte()
    named = palette()[colour]
    image = views._replace(mask=mask).images(named, random_backgrounds(named, draw))
    return Labelled(image, views.shape, colour, views.view, mask.float() / 255)


def view_known(shape: Tensor, view: Tensor) -> Tensor:
    """Whether the view word can be told (B,): overhead always, the others for shapes with a front."""
    fronts = torch.tensor([*(solid.front for solid in SHAPES.values()), False], device=shape.device)
    return fronts[shape] | (view == VIEW_WORDS.index("overhead"))


BENT, STORED = 0.25, 0.08
"""Shares of a batch that are bent, and that are stored failures."""


class JudgePart:
    """Cross-entropy of shape, colour and, where it can be told, view.

    A share of the views is bent: broken ones and stored `failures` are NONE, ones that stay whole keep their shape, and
    what is neither is left straight.
    """

    name = "judge"

    def __init__(self, judge: Judge, world: Views, *, failures: Failures | None = None, batch: int = 64) -> None:
        self.judge, self.world, self.failures, self.batch = judge, world, failures, batch
        self.modules = nn.ModuleDict({"judge": judge})

    def draw(self, draw: Generator) -> Labelled:
        """One batch before it is softened and shifted."""
        image, shape, colour, view, mask = draw_labelled(self.world, self.batch, draw, thin=0.3)
        crooked, same = bent(image, mask, draw)
        chosen = torch.rand(len(image), generator=draw) < BENT
        broken, whole = chosen & (same < BROKEN), chosen & (same > WHOLE)
        image = torch.where((broken | whole)[:, None, None, None], crooked, image)
        shape = torch.where(broken, len(SHAPES), shape)
        if self.failures is not None and len(self.failures.colour):
            stored = torch.rand(len(image), generator=draw) < STORED
            rows = torch.randint(len(self.failures.colour), (len(image),), generator=draw)
            image = torch.where(stored[:, None, None, None], self.failures.image[rows].float() / 255, image)
            shape, colour = (
                torch.where(stored, len(SHAPES), shape),
                torch.where(stored, self.failures.colour[rows], colour),
            )
        return Labelled(image, shape, colour, view, mask)

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """The sum of the three means, and the accuracies of the batch."""
        image, shape, colour, view, _ = self.draw(draw)
        image = torch.roll(soften(image, draw), tuple(torch.randint(-3, 4, (2,), generator=draw).tolist()), (2, 3))
        device = device_of(self.judge)
        shape, colour, view = (label.to(device) for label in (shape, colour, view))
        verdict = self.judge(image.to(device))
        known = view_known(shape, view) & (shape < len(SHAPES))
        view_loss = F.cross_entropy(verdict.view[known], view[known]) if known.any() else verdict.view.sum() * 0
        loss = F.cross_entropy(verdict.shape, shape) + F.cross_entropy(verdict.colour, colour) + 0.5 * view_loss
        return loss, {
            "shape": (verdict.shape.argmax(-1) == shape).float().mean().item(),
            "colour": (verdict.colour.argmax(-1) == colour).float().mean().item(),
        }


@torch.no_grad()
def judge_accuracy(judge: Judge, world: Views, n: int, draw: Generator, *, batch: int = 100) -> dict[str, float]:
    """Shares of right answers on `n` true renders; the view word is counted where it can be told."""
    right: dict[str, list[Tensor]] = {"shape": [], "colour": [], "view": []}
    for _ in range(n // batch):
        image, *truth, _ = draw_labelled(world, batch, draw)
        verdict = Verdict(*(logits.cpu() for logits in judge(image.to(device_of(judge)))))
        known = view_known(truth[0], truth[2])
        hits = [logits.argmax(-1) == label for logits, label in zip(verdict, truth, strict=True)]
        right["shape"].append(hits[0])
        right["colour"].append(hits[1])
        right["view"].append(hits[2][known])
    return {name: torch.cat(parts).float().mean().item() for name, parts in right.items()}


@torch.no_grad()
def refused_share(judge: Judge, failures: Failures, *, batch: int = 100) -> float:
    """The share of failed pictures that are called NONE; NaN without any."""
    parts = failures.image.split(batch)
    seen = [
        judge(part.to(device_of(judge)).float() / 255).shape.argmax(-1) == len(SHAPES) for part in parts if len(part)
    ]
    return torch.cat(seen).float().mean().item() if seen else float("nan")


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
