"""The settings of scene=mesh. The module imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from threestudio_rf.app.settings.options import opt

UPWARD = ("auto", "x", "y", "z")


@dataclass
class MeshConfig:
    """scene=mesh: a surface of marching tetrahedra; its colours are those of `scene.encoding` and `scene.field`."""

    resolution: int = opt(48, "cells per side of the grid", low=4, high=192)
    reach: float = opt(0.45, "how far a vertex of the grid may move, in cells", low=0, high=0.95)
    ball: float = opt(0.5, "radius of the ball it begins with, as a share of scene.radius", above=0, high=0.95)
    up: str = opt("auto", "upward axis of the file of init=; auto: y, z for PLY and STL", choices=UPWARD)
    paint_steps: int = opt(150, "steps that bring the colours of init= to the surface", low=0, high=10000)
