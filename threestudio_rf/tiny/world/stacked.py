"""One shape on another: "a red ball on a blue cube"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from threestudio_rf.tiny.world.primitives import Distance
from threestudio_rf.tiny.world.shapes import SHAPES, Part, Shape

RADIUS = 0.58
"""Radius of the ball around the origin that both objects together fill."""
GRID = 64
COLUMN = 0.06
"""Radius of the column around the axis in which the lower object carries the upper one."""


def _inside(sdf: Callable[[Tensor], Tensor], half: float) -> Tensor:
    """Points (N, 3) of a grid over [-half, half]^3 that lie inside a solid."""
    axis = torch.linspace(-half, half, GRID)
    points = torch.cartesian_prod(axis, axis, axis)
    return points[sdf(points) < 0]


def _moved(sdf: Distance, *, scale: float, up: float) -> Distance:
    """The solid scaled about the origin and then moved along z."""

    def moved(points: Tensor) -> Tensor:
        return scale * sdf((points - points.new_tensor((0.0, 0.0, up))) / scale)

    return moved


def _placed(shape: Shape, *, scale: float, up: float, first: int) -> tuple[Part, ...]:
    """Its parts, moved, with its named colours counted from `first`."""
    return tuple(
        Part(_moved(part.sdf, scale=scale, up=up), part.colour + first if isinstance(part.colour, int) else part.colour)
        for part in shape.parts
    )


@lru_cache(maxsize=64)
def stacked(top: str, bottom: str) -> Shape:
    """The shape `top` standing on the shape `bottom`, both of their own size, made smaller together until they fit.

    The upper one stands on the highest point of the lower one near the axis, a chair's seat for example; where the
    lower one is empty there, on its highest point of all. The prompt's first colour is the upper one's. KeyError for a
    shape the world does not have.
    """
    upper, lower = SHAPES[top], SHAPES[bottom]
    below, above = _inside(lower.sdf, 0.65), _inside(upper.sdf, 0.65)
    carrying = below[below[:, :2].norm(dim=-1) < COLUMN]
    height = float((carrying if len(carrying) else below)[:, 2].max()) - float(above[:, 2].min())
    both = torch.cat((below, above + above.new_tensor((0.0, 0.0, height))))
    middle = float(both[:, 2].max() + both[:, 2].min()) / 2
    scale = RADIUS / float((both - both.new_tensor((0.0, 0.0, middle))).norm(dim=-1).max())
    parts = _placed(upper, scale=scale, up=scale * (height - middle), first=0)
    parts += _placed(lower, scale=scale, up=-scale * middle, first=1)
    whole = replace(upper, name=f"{top} on {bottom}", parts=parts)
    return replace(whole, revolution=upper.revolution and lower.revolution, front=upper.front or lower.front)
