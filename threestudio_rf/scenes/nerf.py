"""A hash-grid radiance field behind the `Scene` contract."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.scenes.background import behind
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, sent
from threestudio_rf.scenes.field import HashGridField, normals_by_differences
from threestudio_rf.scenes.occupancy import MARCHES, OccupancyGrid, march, marching_backend
from threestudio_rf.scenes.shade import Light, Shading, shade
from threestudio_rf.scenes.volume import Samples, accumulate, composite, packed_weights, part_by_part

MARGIN = 0.1
"""The outermost share of the cube on each side, in which the map `border` rises from 0 to 1."""
CHUNK = 65536
"""Rays at once where memory is the machine's own."""
SAMPLE_BYTES = 1536
"""About what a sample needs on a GPU, gradient included, with 16 levels and a network 64 wide (measured: up to 1.4 KB);
normals take six densities more."""
AT_ONCE = 4 * 2**30
"""Bytes that samples take at once on a GPU at most: a million keep any card busy, and the rest is the prior's."""


class HashGridNeRF(Scene):
    """Volume rendering of `field` over `background`, a module of ray directions (N, 3) -> rgb (N, 3).

    `random_background` is the probability that a view, rendered with a generator, stands before one flat random colour.
    `shading` lights views that are rendered with a generator, from the step of the last `update` on. `marching` is a
    choice of `marching_backend`; `marching_reason` says after the first render what is used and why.
    """

    by_rows = True

    def __init__(
        self,
        field: HashGridField,
        background: nn.Module,
        *,
        radius: float = 1.0,
        samples_per_ray: int = 64,
        occupancy_resolution: int = 32,
        occupancy_threshold: float = 0.01,
        update_every: int = 16,
        random_background: float = 0.5,
        ray_chunk: int = 0,
        marching: str = "auto",
        shading: Shading | None = None,
    ) -> None:
        super().__init__()
        if min(samples_per_ray, update_every, ray_chunk + 1) < 1 or not 0 <= random_background <= 1:
            raise ValueError(
                "scene expects samples_per_ray, update_every >= 1, ray_chunk >= 0 and random_background in [0, 1], "
                f"got {samples_per_ray}, {update_every}, {ray_chunk}, {random_background}"
            )
        self.field, self.background = field, background
        self.samples_per_ray, self.update_every = samples_per_ray, update_every
        self.random_background, self.ray_chunk = random_background, ray_chunk
        self._per_ray = self._most = float(samples_per_ray)
        self.radius, self.normal_step = radius, 0.01 * radius
        self.marching, self.marching_reason = marching, ""
        self.shading, self._step = shading, 0
        self._march: Callable[..., Samples] = march
        self.occupancy = OccupancyGrid(
            resolution=occupancy_resolution,
            radius=radius,
            step=2 * math.sqrt(3) * radius / samples_per_ray,
            threshold=occupancy_threshold,
        )

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) at world points (N, 3)."""
        return self.field.density(points)

    def colour(self, points: Tensor) -> Tensor:
        """Colours (N, 3) in [0, 1] at world points (N, 3)."""
        colours: Tensor = self.field(points)[1]
        return colours

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The hash grid, the network behind it, and the background."""
        return {
            "encoding": list(self.field.encoding.parameters()),
            "networks": list(self.field.network.parameters()),
            "background": list(self.background.parameters()),
        }

    def remark(self) -> str:
        """Which marching is used and why."""
        return self.marching_reason

    def update(self, step: int, generator: Generator) -> None:
        """Refreshes the occupancy grid every `update_every` steps; the levels of the field are those of the step."""
        self._step = step
        self.field.update(step)
        if step % self.update_every == 0:
            self.occupancy.update(self.field.density, generator)

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The views of `camera`. `normals` adds the maps normal and orientation (six more density evaluations).

        The rays go in chunks of `ray_chunk`, which is halved for this call when memory runs out; more of them than a
        chunk are rendered once more, chunk by chunk, for their gradient (`volume.part_by_part`).
        """
        camera = camera.to(self.occupancy.opacity.device)
        origins, directions = camera.rays()
        flat = origins.reshape(-1, 3), directions.reshape(-1, 3)
        jitter = None
        if generator is not None:
            jitter = sent(camera.per_ray(generator), flat[0].device)
        if not self.marching_reason:
            name, self.marching_reason = marching_backend(self.marching, flat[0].device)
            self._march = MARCHES[name]
        light = None if self.shading is None else self.shading.draw(camera, self._step, generator)
        chunk, view = self._chunk(normals or light is not None), len(flat[0]) // len(camera)
        self._most = 1.0

        def rays(part: slice) -> Tensor:
            lit = None if light is None else light.at(torch.arange(len(flat[0]), device=flat[0].device)[part] // view)
            return self._rays(flat[0][part], flat[1][part], None if jitter is None else jitter[part], normals, lit)

        maps = part_by_part(rays, len(flat[0]), chunk, list(self.field.parameters()))
        self._per_ray = self._most
        maps = maps.view(-1, *directions.shape[:3]).movedim(0, 1)
        opacity, backdrop = maps[:, 3:4], self._behind(camera, directions, generator, chunk).movedim(-1, 1)
        return Rendering(
            rgb=maps[:, :3] + (1 - opacity) * backdrop,
            opacity=opacity,
            depth=maps[:, 4:5],
            z_variance=maps[:, 5:6],
            border=maps[:, 6:7],
            backdrop=backdrop,
            normal=maps[:, 7:10] if normals else None,
            orientation=maps[:, 10:] if normals else None,
        )

    def _rays(
        self, origins: Tensor, directions: Tensor, jitter: Tensor | None, normals: bool, light: Light | None
    ) -> Tensor:
        """Maps (7 or 11, R): rgb without background, opacity, depth, its variance, border, normal, orientation."""
        samples = self._march(origins, directions, self.occupancy, slots=self.samples_per_ray, jitter=jitter)
        self._most = max(len(samples.distance) / len(origins), self._most)
        density, rgb = self.field(samples.points)
        if normals or light is not None:
            n = normals_by_differences(self.field.density, samples.points, self.normal_step, self.radius)
        if light is not None:
            rgb = shade(rgb, samples.points, n, light.at(samples.ray))
        w = packed_weights(density, samples)
        colour, *single = composite(w, rgb, samples)
        outside = (samples.points.abs().amax(dim=-1) / self.occupancy.radius - 1) / MARGIN + 1
        maps = [colour, torch.stack(single), accumulate((w * outside.clamp(0, 1).square())[None], samples)]
        if normals:
            away = (n * directions[samples.ray]).sum(dim=-1).clamp(min=0).square()
            maps += [accumulate(w * n.t(), samples), accumulate((w.detach() * away)[None], samples)]
        return torch.cat(maps)

    def _chunk(self, normals: bool) -> int:
        """Rays at once: as set, or as many as half the free memory of a CUDA device holds, `AT_ONCE` at most, by the
        samples that rays had in the fullest part of the picture before."""
        device = self.occupancy.opacity.device
        if self.ray_chunk or device.type != "cuda":
            return self.ray_chunk or CHUNK
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        return max(int(min(free / 2, AT_ONCE) / (self._per_ray * SAMPLE_BYTES * (7 if normals else 1))), 1024)

    def _behind(self, camera: Camera, directions: Tensor, generator: Generator | None, chunk: int) -> Tensor:
        """Colours (B, H, W, 3) behind the object."""

        def seen() -> Tensor:
            flat = directions.reshape(-1, 3)
            colours = part_by_part(
                lambda part: self.background(flat[part]).t(), len(flat), chunk, list(self.background.parameters())
            )
            return colours.t().reshape(directions.shape)

        return behind(seen, directions, generator, self.random_background, camera.part)
