"""Figures of generated pictures: correctness and diversity, for pictures of the tiny world whose view is not known.

Every figure is a pure function of pictures (N, 3, H, W) in [0, 1]; `score_pictures` gathers them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.figures.colour import Albedos, albedos
from threestudio_rf.tiny.world.figures.score import Classify, held_out
from threestudio_rf.tiny.world.figures.strict import WORLD, border, nearest_view_iou
from threestudio_rf.tiny.world.shapes import SHAPES, Shape
from threestudio_rf.tiny.world.truth import Subject
from threestudio_rf.tiny.world.views import COLOURS, View, render

CONTRAST = 0.12


def standing_out(images: Tensor, contrast: float = CONTRAST) -> Tensor:
    """Mask (N, 1, H, W) of the object: 1 where a pixel's distance (Euclidean, rgb) from the median colour of its
    picture's border exceeds both `contrast` and twice the median distance of the border's own pixels. The world draws
    objects in the middle of a flat background; the second bound allows for stains that distillation leaves on it."""
    edge = border(images)
    background = edge.median(dim=2, keepdim=True).values
    stains: Tensor = (edge - background).norm(dim=1).median(dim=1).values
    least = (2 * stains).clamp(min=contrast)[:, None, None, None]
    distance: Tensor = (images - background[..., None]).norm(dim=1, keepdim=True)
    return (distance > least).float()


def outline_left(before: Tensor, raw: Tensor, kept: Tensor) -> Tensor:
    """How much of the old object's outline an edited picture still shows (N,), float64.

    The mean difference, largest of the channels, of `kept` from the background of `before`, along the outline of the
    old object (a pixel outside to two inside) where the edit itself, `raw`, shows no object within two pixels; NaN
    where there is no such place. All (N, 3, H, W) in [0, 1].
    """
    background = border(before).median(dim=2).values[..., None, None]
    old, new = standing_out(before), standing_out(raw)

    def grown(mask: Tensor, radius: int) -> Tensor:
        return F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)

    band = grown(old, 1) * grown(1 - old, 2) * (1 - grown(new, 2))
    error = (kept - background).abs().amax(1, keepdim=True)
    return (error * band).flatten(1).double().sum(1) / band.flatten(1).double().sum(1)


@cache
def all_round(shape: Shape) -> View:
    """The held-out views of a shape as one tall picture: masks and shading whose means are those over all views."""
    view = render(shape, held_out())
    return View(*(x.transpose(0, 1).reshape(1, 1, -1, x.shape[-1]) for x in view if x is not None))


def found_albedo(images: Tensor, subject: Subject) -> Albedos:
    """Albedos of the pictures on which something stands out: the mean colour there, its outline left out, divided by
    the shape's mean true shading over all views (the view of the picture is not known)."""
    return albedos(images, standing_out(images), all_round(subject.solid), subject.palette)


def judged_right(images: Tensor, judge: Classify, subject: Subject) -> Tensor | None:
    """Which pictures (N,) show the shape in the colour, by the judge; bool. None for a shape that it does not know."""
    shapes, colours, _ = judge(images)
    names = list(SHAPES)[: shapes.shape[1]]
    if subject.solid.name not in names:
        return None
    right = shapes.argmax(-1) == names.index(subject.solid.name)
    return right & (colours.argmax(-1) == list(COLOURS).index(subject.colours[0]))


def diversity(items: Tensor) -> float | None:
    """Mean over all pairs of the root mean square difference of two items (N, ...); None for a single one.

    In units of the items: for pictures in [0, 1] two independent flat greys are 1/3 apart, two equal pictures 0.
    Backgrounds count as well as objects.
    """
    flat = items.flatten(1).double()
    if len(flat) < 2:
        return None
    first, second = torch.triu_indices(len(flat), len(flat), offset=1)
    return float((flat[first] - flat[second]).square().mean(1).sqrt().mean())


def score_pictures(
    images: Tensor,
    latents: Tensor,
    *,
    subject: Subject,
    judge: Classify,
    cameras: BankCameras = WORLD,
    cache: Path | None = None,
) -> dict[str, float | None]:
    """Figures of pictures (N, 3, H, W) and their latents or values (N, ...); None where nothing can be told.

    nearest_view_iou  mean of the best overlap of each outline with a true view of the shape
    colour_error      mean CIE76 distance of `found_albedo` to the true one
    saturation        mean CIE chroma of the albedo less the true one; above 0 is over-saturated
    diversity         `diversity` of the pictures
    diversity_latent  that of the latents
    recognised        share of pictures whose shape and colour the judge names rightly

    `cameras` are those of the true views, `cache` is where these are kept.
    """
    found, right = found_albedo(images, subject), judged_right(images, judge, subject)
    return {
        "nearest_view_iou": float(nearest_view_iou(images, subject.solid, cameras=cameras, cache=cache).mean()),
        "colour_error": found.error,
        "saturation": found.saturation,
        "diversity": diversity(images),
        "diversity_latent": diversity(latents),
        "recognised": None if right is None else float(right.float().mean()),
    }
