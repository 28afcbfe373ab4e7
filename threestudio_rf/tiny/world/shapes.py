"""The shapes of the tiny world: z up, front = +x, centred on the origin, inside radius 0.62.

A shape is a union of parts. A part has the colour that the prompt names, or one of its own that no prompt changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio_rf.tiny.world import solids
from threestudio_rf.tiny.world.primitives import Distance as Distance
from threestudio_rf.tiny.world.primitives import box, capped_cone, cylinder, sphere, torus, union

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """A solid in one colour: `colour` is an sRGB triple of its own, or which of the prompt's colours it has."""

    sdf: Distance
    colour: RGB | int = 0


@dataclass(frozen=True)
class Shape:
    """A named solid. `front`: its front differs from its back, so a Janus object can be told from a right one."""

    name: str
    parts: tuple[Part, ...]
    revolution: bool
    front: bool = False

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distance (N,) of points (N, 3) to the whole solid, negative inside."""
        distances = [part.sdf(points) for part in self.parts]
        return distances[0] if len(distances) == 1 else union(*distances)

    def part_at(self, points: Tensor) -> Tensor:
        """Index (N,) of the part that is nearest to each of the points (N, 3)."""
        if len(self.parts) == 1:
            return torch.zeros(len(points), dtype=torch.long, device=points.device)
        return torch.stack([part.sdf(points) for part in self.parts]).argmin(dim=0)

    @property
    def colours(self) -> int:
        """How many colours a prompt names for it."""
        return 1 + max(part.colour for part in self.parts if isinstance(part.colour, int))

    def palette(self, named: Tensor) -> Tensor:
        """The colours of the parts (B, K, 3) for the colours (B, 3) or (B, C, 3) that prompts name."""
        named = named[:, None] if named.ndim == 2 else named
        rows = [
            named[:, part.colour]
            if isinstance(part.colour, int)
            else named.new_tensor(part.colour).expand(len(named), 3)
            for part in self.parts
        ]
        return torch.stack(rows, dim=1)


def _plain(name: str, sdf: Distance, *, revolution: bool = False, front: bool = False) -> Shape:
    return Shape(name, (Part(sdf),), revolution, front)


def _painted(
    name: str, parts: Iterable[tuple[Distance, RGB | None]], *, revolution: bool = False, front: bool = False
) -> Shape:
    return Shape(name, tuple(Part(sdf, 0 if colour is None else colour) for sdf, colour in parts), revolution, front)


_ALL: Sequence[Shape] = (
    _plain("ball", lambda p: sphere(p, 0.42), revolution=True),
    _plain("cone", lambda p: capped_cone(p, 0.4, 0.0, 0.43), revolution=True),
    _plain("cylinder", lambda p: cylinder(p, 0.29, 0.42), revolution=True),
    _plain("donut", lambda p: torus(p, 0.33, 0.15), revolution=True),
    _plain("mushroom", solids.mushroom, revolution=True),
    _plain("snowman", solids.snowman, revolution=True),
    _plain("cube", lambda p: box(p, (0.31, 0.31, 0.31))),
    _plain("table", solids.table),
    _plain("chair", solids.chair, front=True),
    _plain("house", solids.house, front=True),
    _plain("arrow", solids.arrow),
    _plain("star", solids.star),
    _painted("car", solids.car(), front=True),
    _painted("tree", solids.tree(), revolution=True),
    _painted("rocket", solids.rocket(), front=True),
    _painted("cup", solids.cup()),
    _painted("lamp", solids.lamp(), revolution=True),
    _painted("boat", solids.boat(), front=True),
    _painted("castle", solids.castle(), front=True),
    _painted("duck", solids.duck(), front=True),
)
SHAPES: dict[str, Shape] = {shape.name: shape for shape in _ALL}
TWELVE: tuple[str, ...] = tuple(SHAPES)[:12]
"""The shapes of the priors and of the judge that were trained before the others were there."""


def palettes(names: Sequence[str] = tuple(SHAPES)) -> Callable[[Tensor, Tensor], Tensor]:
    """The colours (B, K, 3) of every part as a function of shape indices (B,) into `names` and named colours (B, 3);
    K is the largest number of parts, shapes of fewer repeat the named colour."""
    most = max(len(SHAPES[name].parts) for name in names)
    fixed = torch.full((len(names), most, 3), torch.nan)
    for number, name in enumerate(names):
        for k, part in enumerate(SHAPES[name].parts):
            if not isinstance(part.colour, int):
                fixed[number, k] = torch.tensor(part.colour)

    def of(shape: Tensor, named: Tensor) -> Tensor:
        rows = fixed.to(named.device)[shape]
        return torch.where(rows.isnan(), named[:, None], rows)

    return of
