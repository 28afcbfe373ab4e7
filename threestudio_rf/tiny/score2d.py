"""How right generated pictures are, and how different: figures of the tiny world for pictures without a known view.

Every figure is a pure function of pictures (N, 3, H, W) in [0, 1]; `score_pictures` gathers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from threestudio_rf.tiny.score import Classify, albedos, colour_distance, held_out, oversaturation
from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.world import COLOURS, View, render

CONTRAST = 0.12


def border(images: Tensor) -> Tensor:
    """The outermost pixels (N, 3, P)."""
    return torch.cat([images[:, :, [0, -1]].flatten(2), images[..., [0, -1]].flatten(2)], dim=2)


def standing_out(images: Tensor, contrast: float = CONTRAST) -> Tensor:
    """Mask (N, 1, H, W), 1 where a pixel is further (Euclidean, rgb) from the median of its picture's border than
    `contrast`, and than twice the border's own median distance from it: the object, since the world draws it in
    the middle of a flat background, and what distillation leaves of that may be stained."""
    edge = border(images)
    background = edge.median(dim=2, keepdim=True).values
    stains = (edge - background).norm(dim=1).median(dim=1).values
    least = (2 * stains).clamp(min=contrast)[:, None, None, None]
    return ((images - background[..., None]).norm(dim=1, keepdim=True) > least).float()


@cache
def all_round(shape: str) -> View:
    """The held-out views of a shape as one tall picture: masks and shading whose means are those over all views."""
    view = render(SHAPES[shape], held_out())
    mask, shading, depth = (x.transpose(0, 1).reshape(1, 1, -1, x.shape[-1]) for x in view)
    return View(mask, shading, depth)


def found_albedo(images: Tensor, shape: str) -> Tensor:
    """Albedo (n, 3) of the n <= N pictures on which something stands out: the mean colour there, its outline left out,
    divided by the shape's mean true shading over all views (the view of the picture is not known)."""
    return albedos(images, standing_out(images), all_round(shape))


def judged_right(images: Tensor, judge: Classify, *, shape: str, colour: str) -> Tensor:
    """Which pictures (N,) show the shape in the colour, by the judge; bool."""
    shapes, colours, _ = judge(images)
    right = shapes.argmax(-1) == list(SHAPES).index(shape)
    return right & (colours.argmax(-1) == list(COLOURS).index(colour))


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
    images: Tensor, latents: Tensor, *, shape: str, colour: str, judge: Classify
) -> dict[str, float | None]:
    """Figures of pictures (N, 3, H, W) and their latents or values (N, ...); None where nothing can be told.

    judged_accuracy   share of pictures judged right in shape and colour
    colour_error      mean CIE76 distance of `found_albedo` to the colour's name
    saturation        mean CIE chroma of the albedo less that of the named colour; above 0 is over-saturated
    diversity         `diversity` of the pictures
    diversity_latent  that of the latents

    Raises ValueError for a shape or colour the world does not have.
    """
    if shape not in SHAPES or colour not in COLOURS:
        raise ValueError(f"the world has {', '.join(SHAPES)} in {', '.join(COLOURS)}, got a {colour} {shape}")
    named: Sequence[float] = COLOURS[colour]
    found = found_albedo(images, shape)
    return {
        "judged_accuracy": float(judged_right(images, judge, shape=shape, colour=colour).float().mean()),
        "colour_error": colour_distance(found, named),
        "saturation": oversaturation(found, named),
        "diversity": diversity(images),
        "diversity_latent": diversity(latents),
    }
