"""Pictures of melted shapes, which the judge is trained to call "none of these".

Some are pictures that the embedded priors really make, in few steps and without guidance, and that the strict figure
finds far from every true view; the others are true views that are bent until their outline is no longer their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import solve
from threestudio_rf.core.times import spacing
from threestudio_rf.priors.base import Prior, bind
from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.figures.strict import nearest_view_iou
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, IMAGE_SIZE, VIEW_WORDS, prompt_of

FAILED, BROKEN, WHOLE = 0.75, 0.75, 0.92
"""A sample fails below this strict figure; a bent view is broken below this IoU with itself, and whole above that."""
STEPS = (2, 3, 5)
VIEWS = 400
"""True views of every shape that decide what has failed."""


class Failures(NamedTuple):
    """Pictures as bytes (N, 3, H, W) of shapes that failed, and the index of the colour that they were asked for."""

    image: Tensor
    colour: Tensor


def bent(images: Tensor, masks: Tensor, draw: Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) bent by a smooth random field of up to a quarter of their size, and the IoU (N,) of the bent
    masks (N, 1, H, W) with the straight ones."""
    n = len(images)
    knots = int(torch.randint(3, 7, (), generator=draw))
    strength = 0.5 * torch.rand(n, 1, 1, 1, generator=draw)
    field = strength * (2 * torch.rand(n, 2, knots, knots, generator=draw) - 1)
    field = F.interpolate(field, images.shape[-2:], mode="bicubic", align_corners=True)
    straight = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(images.shape), align_corners=False)
    where = straight + field.movedim(1, -1)
    both = torch.cat((images, masks), dim=1)
    out = F.grid_sample(both, where, padding_mode="border", align_corners=False)
    seen, true = out[:, 3] > 0.5, masks[:, 0] > 0.5
    either = (seen | true).flatten(1).sum(1).clamp_min(1)
    return out[:, :3], (seen & true).flatten(1).sum(1) / either


@torch.no_grad()
def failed_samples(
    prior: Prior, names: list[str], n: int, seed: int, *, views: int = VIEWS, cache: Path | None = None
) -> Failures:
    """Those of about `n` samples of a flow, in two to five Euler steps without guidance, whose strict figure says that
    their shape, one of `names`, failed by `views` true views."""
    rows = []
    for number in range(-(-n // len(names))):
        draw = generator(seed, number, "failures")
        colour = torch.randint(len(COLOURS), (len(names),), generator=draw)
        view = torch.randint(len(VIEW_WORDS), (len(names),), generator=draw)
        prompts = [
            f"{prompt_of(name, list(COLOURS)[c])}, {VIEW_WORDS[v]} view"
            for name, c, v in zip(names, colour.tolist(), view.tolist(), strict=True)
        ]
        field = bind(prior, {"cond": prior.embed(prompts)}).field()
        start = normal((len(names), *prior.latent_shape), draw)
        *_, x = solve(field, start, spacing(STEPS[number % len(STEPS)]))
        image = F.interpolate(prior.decode(x), (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        found = torch.stack(
            [
                nearest_view_iou(image[i : i + 1], SHAPES[name], cameras=BankCameras(views), cache=cache)[0]
                for i, name in enumerate(names)
            ]
        )
        bad = found < FAILED
        rows.append(((255 * image[bad]).round().byte(), colour[bad]))
    return Failures(*(torch.cat(column) for column in zip(*rows, strict=True)))
