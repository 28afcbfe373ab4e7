"""The contract of everything that can be rendered: a scene knows cameras and pictures, never a prior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.surface.tetra import Triangles


class Rendering(NamedTuple):
    """What a scene shows to B cameras, every map (B, C, H, W); a map that was not computed is None.

    `rgb` in [0, 1] over the background, `opacity` in [0, 1], `depth` the expected distance along the ray, `normal`
    unit vectors in world coordinates weighted by opacity, `orientation` the penalty of normals that face away,
    `z_variance` the variance of the distance along the ray, `border` the opacity of what is near the border of the
    scene, `backdrop` the rgb behind the object: rgb - (1 - opacity) backdrop is the object alone.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor | None = None
    normal: Tensor | None = None
    orientation: Tensor | None = None
    z_variance: Tensor | None = None
    border: Tensor | None = None
    backdrop: Tensor | None = None


class Scene(nn.Module, ABC):
    """Parameters that can be looked at. `by_rows`: some rows of a view (`Camera.band`) can be rendered alone."""

    by_rows: ClassVar[bool] = False

    @abstractmethod
    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The views of `camera`; `generator` None means deterministic (no jitter, the scene's own background).
        `normals` asks for the maps `normal` and `orientation`, which cost further evaluations. After a first view,
        several threads may render at once without gradients."""

    def update(self, step: int, generator: Generator) -> None:
        """Called once before each step; for state that is refreshed rather than learned."""

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by the name of their learning rate, each of them once; by default all in "networks"."""
        return {"networks": list(self.parameters())}

    def after_step(self, optimiser: Optimizer, step: int) -> None:
        """Called once after each step of the optimiser, when the parameters still hold the gradients of that step; for
        constraints, and for parameters that are added or removed, whose groups and state are the optimiser's."""

    def terms(self) -> dict[str, Callable[[], Tensor]]:
        """Regularisers of its own by name, scalars of what the last rendering has shown; each is called only when its
        factor is not 0."""
        return {}

    def remark(self) -> str:
        """How it is rendered, once a first rendering has decided that; empty where there is nothing to say."""
        return ""


@runtime_checkable
class Surface(Protocol):
    """A scene with an inside, which may have a surface: its volume can be measured and a mesh be made of it.

    `radius` is half the side of the cube around the origin that holds it, `density` (N,) of world points (N, 3) is not
    negative, `colour` (N, 3) lies in [0, 1].
    """

    @property
    def radius(self) -> float:
        """Half the side of its cube."""
        ...

    def density(self, points: Tensor) -> Tensor:
        """Densities (N,) >= 0 at world points (N, 3)."""
        ...

    def colour(self, points: Tensor) -> Tensor:
        """Colours (N, 3) in [0, 1] at world points (N, 3)."""
        ...


@runtime_checkable
class Meshed(Surface, Protocol):
    """A `Surface` that has its mesh, closed and oriented outwards: the surface of its density at `level`."""

    @property
    def level(self) -> float:
        """The density at the surface."""
        ...

    def surface(self) -> Triangles:
        """The mesh of the present parameters, with a graph."""
        ...
