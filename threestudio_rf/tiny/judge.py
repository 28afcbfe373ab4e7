"""The judge: a small classifier of shape, colour and view word, trained on views that no prior ever saw.

A NeRF render is softer than a picture of the world, so it is trained with blur, noise and thin objects too.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from threestudio_rf.tiny.failures import BROKEN, WHOLE, Failures, bent
from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.stage import palette
from threestudio_rf.tiny.training import device_of
from threestudio_rf.tiny.world import COLOURS, VIEW_WORDS, Views, random_backgrounds

NONE = "none of these"
"""The judge's last class of shapes: something that is no shape of the world, a melted one for example."""


class Verdict(NamedTuple):
    """Logits (B, shapes and maybe NONE), (B, colours) and (B, view words)."""

    shape: Tensor
    colour: Tensor
    view: Tensor


class Judge(nn.Module):
    """Five strided convolutions with group norm, then one linear map to all three answers; input (B, 3, 64, 64)."""

    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128), *, shapes: int = len(SHAPES) + 1) -> None:
        """`shapes`: how many of SHAPES, and NONE behind all of them, it tells apart."""
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 5, stride=2, padding=2), nn.SiLU()]
        for wide, wider in pairwise(channels):
            layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.sizes = [shapes, len(COLOURS), len(VIEW_WORDS)]
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(channels[-1] * 16, 128), nn.SiLU(), nn.Linear(128, sum(self.sizes))
        )

    def forward(self, images: Tensor) -> Verdict:
        """Judge images (B, 3, H, W) in [0, 1]; other sizes are resized to 64 by area."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        if images.shape[-2:] != (64, 64):
            images = F.interpolate(images, (64, 64), mode="area")
        return Verdict(*self.head(self.body(2 * images - 1)).split(self.sizes, dim=-1))


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


def load_judge(folder: Path) -> Judge:
    """The judge of `<folder>/judge.safetensors`, in float32 and eval mode; its weights say how many shapes it knows."""
    from safetensors.torch import load_file

    state: dict[str, Any] = {name: value.float() for name, value in load_file(folder / "judge.safetensors").items()}
    answers = len(state["head.3.bias"])
    judge = Judge(shapes=answers - len(COLOURS) - len(VIEW_WORDS))
    judge.load_state_dict(state)
    return judge.eval().requires_grad_(False)
