"""A mesh behind the `Scene` contract: marching tetrahedra, the rasteriser, and a hash-grid field for its colours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from threestudio_rf.scenes.background import behind
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.field import HashGridField
from threestudio_rf.scenes.nerf import MARGIN
from threestudio_rf.scenes.shade import Light, Shading, shade
from threestudio_rf.scenes.surface.diffuse import diffused
from threestudio_rf.scenes.surface.edges import Edges, antialias, crossings, edges_of
from threestudio_rf.scenes.surface.raster import (
    Fragments,
    Screen,
    barycentric,
    corners_of,
    interpolate,
    project,
    rasterize,
    spread,
)
from threestudio_rf.scenes.surface.regularize import convex, laplacian, normal_consistency, vertex_normals
from threestudio_rf.scenes.surface.tetra import Triangles, grid_points, march_tetrahedra

RAMP = 0.1
"""Half of the width, in cells, in which `density` falls from solid to nothing around the surface."""
THIN = 0.1
"""How deep under the surface, in cells, its colour is looked for where a density is taken for a surface."""


class MeshScene(Scene):
    """The zero set of a signed distance on a grid of tetrahedra (DMTet, Shen et al. 2021), negative inside.

    `distance` ((R + 1)^3,) is in cells, a cell being 2 radius / resolution; a grid vertex may move from its place by
    `reach` tanh(`offset`) cells along each axis. The colour of a surface point is that of `field`, of which the density
    is not used; its gradient goes to the field, that of outlines, depth and normals to the surface.
    The gradient of the shape is `diffused` over `diffusion` cells.
    `background` and `shading` are as in `HashGridNeRF`. It begins as a ball of `ball` times the radius. ValueError for
    impossible sizes.
    """

    def __init__(
        self,
        field: HashGridField,
        background: nn.Module,
        *,
        radius: float = 1.0,
        resolution: int = 48,
        reach: float = 0.45,
        ball: float = 0.5,
        diffusion: float = 0.0,
        random_background: float = 0.5,
        shading: Shading | None = None,
    ) -> None:
        super().__init__()
        if resolution < 4 or radius <= 0 or not 0 <= reach < 1 or not 0 < ball < 1 or not 0 <= random_background <= 1:
            raise ValueError(
                "mesh expects resolution >= 4, radius > 0, reach in [0, 1), ball in (0, 1), random_background in "
                f"[0, 1], got {resolution}, {radius}, {reach}, {ball}, {random_background}"
            )
        self.field, self.background = field, background
        self.radius, self.resolution, self.reach, self.diffusion = radius, resolution, reach, diffusion
        self.random_background = random_background
        self.shading, self._step = shading, 0
        self.cell = 2 * radius / resolution
        self.register_buffer("grid", grid_points(resolution, radius), persistent=False)
        self.grid: Tensor
        self.distance = nn.Parameter((self.grid.norm(dim=-1) - ball * radius) / self.cell)
        self.offset = nn.Parameter(torch.zeros_like(self.grid))
        self._shown: tuple[Triangles, Edges] | None = None

    @torch.no_grad()
    def begin(self, distance: Tensor) -> None:
        """Begin with the signed distance ((R + 1)^3,) of the vertices of `grid`, in world units."""
        if distance.shape != self.distance.shape:
            raise ValueError(f"distance: got {tuple(distance.shape)}, expected {tuple(self.distance.shape)}")
        self.distance.copy_(distance / self.cell)
        self.offset.zero_()

    def paint(self, points: Tensor, colours: Tensor, *, steps: int, generator: Generator, batch: int = 8192) -> float:
        """Teach `field` the `colours` (N, 3) of surface points (N, 3), and of the space half a cell around them, by
        `steps` steps; the root of the mean squared error at the end."""
        optimiser = torch.optim.Adam(self.field.parameters(), lr=0.01, eps=1e-15)
        error = torch.zeros(())
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 0.01 * (1 - step / steps)
            chosen = torch.randint(len(points), (min(batch, len(points)),), generator=generator)
            near = points[chosen] + 0.5 * self.cell * torch.randn(len(chosen), 3, generator=generator)
            error = (self.colour(near.to(self.grid.device)) - colours[chosen].to(self.grid.device)).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        return float(error.item() ** 0.5)

    def update(self, step: int, generator: Generator) -> None:
        """Remembers the step, for `shading`, and lets the levels of the field be those of the step."""
        self._step = step
        self.field.update(step)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The shape, the hash grid, the network behind it, and the background."""
        return {
            "geometry": [self.distance, self.offset],
            "encoding": list(self.field.encoding.parameters()),
            "networks": list(self.field.network.parameters()),
            "background": list(self.background.parameters()),
        }

    def terms(self) -> dict[str, Callable[[], Tensor]]:
        """Laplacian, normal consistency and convexity of the surface that was rendered last."""
        chosen = {"laplacian": laplacian, "normal_consistency": normal_consistency, "convex": convex}
        return {} if self._shown is None else {name: partial(term, *self._shown) for name, term in chosen.items()}

    def surface(self) -> Triangles:
        """The mesh, with its gradient."""
        size = self.resolution + 1
        distance, offset = (diffused(x, size, self.diffusion) for x in (self.distance, self.offset))
        points = self.grid + self.reach * self.cell * torch.tanh(offset)
        return march_tetrahedra(points, distance, self.resolution)

    def colour(self, points: Tensor) -> Tensor:
        """Colours (N, 3) in [0, 1] at world points (N, 3)."""
        return torch.sigmoid(self.field.raw(points)[:, 1:])

    @property
    def level(self) -> float:
        """The density at the surface."""
        return 4 / (THIN * self.cell)

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) at world points (N, 3): 2 `level` inside, 0 outside, a steep ramp between. The moved grid is
        undone by two fixed-point steps, so it is exact to a small part of a cell only."""
        size = self.resolution + 1
        offset = (self.reach * self.cell * torch.tanh(self.offset)).t().view(1, 3, size, size, size)
        place = points
        for _ in range(2):
            place = points - self._between(offset, place).t()
        distance = self._between(self.distance.view(1, 1, size, size, size), place)[0]
        outside = points.abs().amax(dim=-1) >= self.radius
        ramp = (0.5 - distance / (2 * RAMP)).clamp(0, 1)
        return 2 * self.level * torch.where(outside, 0, ramp)

    def _between(self, values: Tensor, points: Tensor) -> Tensor:
        """Trilinear values (C, N) of a grid (1, C, R + 1, R + 1, R + 1) at world points (N, 3)."""
        where = (points / self.radius).flip(-1).view(1, -1, 1, 1, 3)
        found = functional.grid_sample(values, where, align_corners=True, padding_mode="border")
        return found.view(values.shape[1], -1)

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The views of `camera`, opaque up to antialiased outlines; `normals` adds the maps normal and orientation."""
        camera = camera.to(self.distance.device)
        mesh = self.surface()
        edges = edges_of(mesh.faces)
        self._shown = mesh, edges
        screen = project(mesh.vertices, camera)
        found = rasterize(screen, mesh.faces, cull=True)
        weights = barycentric(screen, mesh.faces, found)
        light = None if self.shading is None else self.shading.draw(camera, self._step, generator)
        values = self._fragments(mesh, found, weights, camera, normals, light)
        maps = antialias(
            spread(values, found, screen), crossings(screen, edges, _depth(screen, mesh.faces, found, weights))
        )
        maps = maps.view(-1, len(camera), camera.height, camera.width).movedim(0, 1)
        opacity, directions = maps[:, 3:4], camera.rays()[1]

        def own() -> Tensor:
            colours: Tensor = self.background(directions.reshape(-1, 3))
            return colours.view_as(directions)

        backdrop = behind(own, directions, generator, self.random_background, camera.part).movedim(-1, 1)
        return Rendering(
            rgb=maps[:, :3] + (1 - opacity) * backdrop,
            opacity=opacity,
            depth=maps[:, 4:5] / opacity.clamp(min=1e-6),
            border=maps[:, 5:6],
            backdrop=backdrop,
            normal=maps[:, 6:9] if normals else None,
            orientation=maps[:, 9:] if normals else None,
        )

    def _fragments(
        self,
        mesh: Triangles,
        found: Fragments,
        weights: Tensor,
        camera: Camera,
        normals: bool,
        light: Light | None,
    ) -> Tensor:
        """rgb, cover, distance, border (6, N) at the fragments, with `normals` also normal and orientation (4, N)."""
        points = interpolate(mesh.vertices.t(), mesh.faces, found, weights)
        rgb = self.colour(points.detach().t())
        if normals or light is not None:
            n = interpolate(vertex_normals(mesh).t(), mesh.faces, found, weights)
            n = functional.normalize(n, dim=0, eps=1e-8)
        if light is not None:
            rgb = shade(rgb, points.t(), n.t(), light.at(found.view))
        ray = points - camera.position.t().index_select(1, found.view)
        distance = ray.norm(dim=0)
        outside = (points.abs().amax(dim=0) / self.radius - 1) / MARGIN + 1
        values = [rgb.t(), torch.stack((torch.ones_like(distance), distance, outside.clamp(0, 1).square()))]
        if normals:
            away = (n * ray / distance).sum(dim=0).clamp(min=0).square()
            values += [n, away[None]]
        return torch.cat(values)


@torch.no_grad()
def _depth(screen: Screen, faces: Tensor, found: Fragments, weights: Tensor) -> Tensor:
    """Distance along the viewing axis (B * H * W,), infinite where nothing is seen."""
    depth = torch.full((len(screen.x) * screen.height * screen.width,), torch.inf, device=faces.device)
    corners = faces.index_select(0, found.face).t().contiguous()
    return depth.index_copy(0, found.cell, (weights * corners_of(screen.z, found.view, corners)).sum(0))
