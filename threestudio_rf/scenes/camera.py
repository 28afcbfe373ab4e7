"""Cameras on a sphere around the origin: right-handed, z up, azimuth 0 = front = camera on +x.

A camera at azimuth a and elevation e (degrees) and distance d stands at d (cos e cos a, cos e sin a, sin e) and looks
at the origin; the columns of `c2w` are [right, up, -lookat].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Camera:
    """B pinhole cameras of one picture size. Angles in degrees, all (B,); `fovy` is the vertical field of view.

    `part` says which part of a batch they are, and of how many parts: what is drawn for them is what they would get in
    the whole batch. `band` (k, n) says that of every view only each n-th row is meant, from row k on. `shift` (B, 3, 3)
    is added to where they stand, to the origin they look at and to z, their up; None adds nothing. ValueError for other
    shapes.
    """

    azimuth: Tensor
    elevation: Tensor
    distance: Tensor
    fovy: Tensor
    height: int
    width: int
    part: tuple[int, int] = (0, 1)
    band: tuple[int, int] = (0, 1)
    shift: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(x.shape) for x in (self.azimuth, self.elevation, self.distance, self.fovy)}
        if len(shapes) != 1 or self.azimuth.ndim != 1:
            raise ValueError(f"azimuth, elevation, distance and fovy must all be (B,), got {sorted(shapes)}")
        if self.shift is not None and self.shift.shape != (len(self), 3, 3):
            raise ValueError(f"shift must be ({len(self)}, 3, 3), got {tuple(self.shift.shape)}")

    def __len__(self) -> int:
        return len(self.azimuth)

    @property
    def position(self) -> Tensor:
        """Camera centres (B, 3)."""
        azimuth, elevation = torch.deg2rad(self.azimuth), torch.deg2rad(self.elevation)
        flat = torch.cos(elevation)
        unit = torch.stack((flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)), dim=-1)
        place = self.distance[:, None] * unit
        return place if self.shift is None else place + self.shift[:, 0]

    @property
    def c2w(self) -> Tensor:
        """Rotation (B, 3, 3), columns [right, up, -lookat]; well defined at the poles too, without a shift."""
        if self.shift is not None:
            return _looking(self.shift[:, 1] - self.position, self.shift[:, 2])
        azimuth, elevation = torch.deg2rad(self.azimuth), torch.deg2rad(self.elevation)
        sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
        right = torch.stack((-sin_a, cos_a, torch.zeros_like(sin_a)), dim=-1)
        up = torch.stack((-sin_e * cos_a, -sin_e * sin_a, cos_e), dim=-1)
        back = torch.stack((cos_e * cos_a, cos_e * sin_a, sin_e), dim=-1)
        return torch.stack((right, up, back), dim=-1)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions, both (B, H, W, 3), through the pixel centres; row 0 is the top. Of a `band` only
        its rows."""
        device = self.azimuth.device
        tangent = torch.tan(torch.deg2rad(self.fovy) / 2)[:, None, None]
        y = 1 - 2 * (torch.arange(self.height, device=device) + 0.5) / self.height
        y = y[self.band[0] :: self.band[1]]
        x = (2 * (torch.arange(self.width, device=device) + 0.5) / self.width - 1) * (self.width / self.height)
        y, x = torch.meshgrid(y, x, indexing="ij")
        local = torch.stack((x * tangent, y * tangent, -torch.ones_like(x).expand(len(self), -1, -1)), dim=-1)
        directions = torch.einsum("bij,bhwj->bhwi", self.c2w, local)
        directions = directions / directions.norm(dim=-1, keepdim=True)
        return self.position[:, None, None, :].expand_as(directions), directions

    def resized(self, height: int, width: int) -> Camera:
        """The same views at another picture size."""
        return replace(self, height=height, width=width)

    def select(self, index: slice | Tensor | list[int]) -> Camera:
        """The cameras of `index`, as a batch."""
        return replace(
            self,
            azimuth=self.azimuth[index],
            elevation=self.elevation[index],
            distance=self.distance[index],
            fovy=self.fovy[index],
            shift=None if self.shift is None else self.shift[index],
        )

    def share(self, index: int, parts: int) -> Camera:
        """Part `index` of `parts` equal ones of the views. ValueError for what cannot be divided so."""
        if len(self) % parts:
            raise ValueError(f"got {len(self)} cameras, expected a multiple of {parts}")
        size = len(self) // parts
        return replace(self.select(slice(index * size, (index + 1) * size)), part=(index, parts))

    def rows(self, index: int, parts: int) -> Camera:
        """Every `parts`-th row of all views, from row `index` on. ValueError for a height that is no multiple."""
        if self.height % parts:
            raise ValueError(f"got {self.height} rows, expected a multiple of {parts}")
        return replace(self, band=(index, parts))

    def per_ray(self, generator: torch.Generator) -> Tensor:
        """Uniform numbers (R,) for the rays of `rays`: what they would get in the whole batch."""
        count = len(self) * self.height * self.width
        mine = drawn(count, 1, generator, self.part).view(len(self), self.height, self.width)
        return mine[:, self.band[0] :: self.band[1]].flatten()

    def to(self, device: torch.device | str) -> Camera:
        """The same cameras on another device."""
        return replace(
            self,
            azimuth=sent(self.azimuth, device),
            elevation=sent(self.elevation, device),
            distance=sent(self.distance, device),
            fovy=sent(self.fovy, device),
            shift=None if self.shift is None else sent(self.shift, device),
        )


def _looking(lookat: Tensor, tilt: Tensor) -> Tensor:
    """Rotation (B, 3, 3) of cameras that look along `lookat` (B, 3), their up being z + `tilt` (B, 3)."""
    lookat = functional.normalize(lookat, dim=-1)
    up = functional.pad(torch.ones_like(tilt[..., :1]), (2, 0)) + tilt
    right = functional.normalize(torch.linalg.cross(lookat, up), dim=-1)
    return torch.stack((right, torch.linalg.cross(right, lookat), -lookat), dim=-1)


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on `device`, to CUDA as `core.transfer` does: the scenes import nobody."""
    wait = torch.device(device).type != "cuda" or values.device.type != "cpu"
    return values.to(device) if wait else values.pin_memory().to(device, non_blocking=True)


def drawn(count: int, width: int, generator: torch.Generator, part: tuple[int, int]) -> Tensor:
    """Uniform numbers (count, width) for as many rays or views of a `Camera.part`: its part of those of the whole."""
    index, parts = part
    return torch.rand(count * parts, width, generator=generator)[index * count : (index + 1) * count]


def orbit(
    n: int, *, elevation: float = 15.0, distance: float = 1.8, fovy: float = 46.0, height: int, width: int
) -> Camera:
    """`n` views once around the object at equal steps, starting in front."""
    if n < 1:
        raise ValueError(f"an orbit needs at least one view, got {n}")
    azimuth = torch.arange(n) * (360.0 / n)
    azimuth = torch.where(azimuth > 180, azimuth - 360, azimuth)
    full = torch.full((n,), 1.0)
    return Camera(azimuth, full * elevation, full * distance, full * fovy, height, width)


def sphere_views(
    n: int,
    *,
    elevation: tuple[float, float] = (-10.0, 60.0),
    distance: float = 1.8,
    fovy: float = 46.0,
    height: int,
    width: int,
) -> Camera:
    """`n` fixed views spread evenly over the band of a sphere (a Fibonacci spiral), for evaluation."""
    low, high = (math.sin(math.radians(e)) for e in elevation)
    share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    angle = torch.rad2deg(torch.asin(low + (high - low) * share))
    azimuth = torch.remainder(torch.arange(n, dtype=torch.float64) * 180 * (3 - math.sqrt(5)), 360) - 180
    full = torch.full((n,), 1.0)
    return Camera(azimuth.float(), angle.float(), full * distance, full * fovy, height, width)


def random_views(
    n: int,
    generator: torch.Generator,
    *,
    elevation: tuple[float, float] = (-10.0, 70.0),
    azimuth: tuple[float, float] = (-180.0, 180.0),
    distance: tuple[float, float] = (1.6, 2.0),
    fovy: tuple[float, float] = (40.0, 52.0),
    sphere: float = 0.5,
    stratified: bool = True,
    stray: tuple[float, float, float] = (0.0, 0.0, 0.0),
    height: int,
    width: int,
) -> Camera:
    """Random views. Each elevation is uniform on the sphere with probability `sphere`, asin(U(sin lo, sin hi)), else
    uniform in degrees; azimuths are stratified over the batch on request. `stray` (a, b, c) shifts cameras as
    threestudio does: the position by U(-a, a)^3, the point looked at by N(0, b^2), up by N(0, c^2). ValueError for
    an empty range."""
    for name, (low, high) in {
        "elevation": elevation,
        "azimuth": azimuth,
        "distance": distance,
        "fovy": fovy,
    }.items():
        if low > high:
            raise ValueError(f"camera {name} range is empty: {low} > {high}")
    draws = torch.rand(5, n, generator=generator)

    def between(u: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * u

    low, high = (math.sin(math.radians(e)) for e in elevation)
    on_sphere = torch.rad2deg(torch.asin(between(draws[0], low, high))).clamp(*elevation)
    angle = torch.where(draws[4] < sphere, on_sphere, between(draws[0], *elevation))
    turn = (torch.arange(n) + draws[1]) / n if stratified else draws[1]
    shift = None
    if any(stray):
        moved = torch.rand(n, 1, 3, generator=generator) * 2 - 1
        shift = torch.cat((moved, torch.randn(n, 2, 3, generator=generator)), 1) * torch.tensor(stray)[:, None]
    where = between(turn, *azimuth), angle, between(draws[2], *distance), between(draws[3], *fovy)
    return Camera(*where, height, width, shift=shift)
