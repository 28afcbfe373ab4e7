"""Where space is empty: a grid of opacities that follows the field, and marching that skips what cannot be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from threestudio_rf.scenes.volume import Samples

HIDDEN = 1e-3  # a sample is surely hidden when less than this share of light passes the solid cells before it


class OccupancyGrid(nn.Module):
    """resolution^3 cells over [-radius, radius]^3, index (x, y, z) with z fastest.

    A cell holds the decayed maximum of the opacity 1 - exp(-density step) seen in it; it counts as occupied above
    min(mean, threshold) (Mueller et al. 2022, as in nerfacc). `depth` is a lower bound of the optical depth per unit
    length: that of the least opaque cell among a cell and its 26 neighbours. All three are saved, so that a resumed run
    is exact. Before the first update everything is occupied and nothing hides.
    """

    opacity: Tensor
    occupied: Tensor
    depth: Tensor

    def __init__(self, *, resolution: int, radius: float, step: float, threshold: float, decay: float = 0.95) -> None:
        super().__init__()
        if resolution < 1 or radius <= 0 or step <= 0:
            raise ValueError(f"occupancy grid needs resolution, radius, step > 0, got {resolution}, {radius}, {step}")
        self.resolution, self.radius, self.step = resolution, radius, step
        self.threshold, self.decay = threshold, decay
        self.register_buffer("opacity", torch.zeros(resolution**3))
        self.register_buffer("occupied", torch.ones(resolution**3, dtype=torch.bool))
        self.register_buffer("depth", torch.zeros(resolution**3))

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
        """Looks at one random point of every cell; `density` maps world points (N, 3) to (N,)."""
        n = self.resolution
        axis = torch.arange(n)
        cell = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
        points = (cell + torch.rand(n**3, 3, generator=generator)) * (2 * self.radius / n) - self.radius
        seen = -torch.expm1(-density(points.to(self.opacity.device)) * self.step)
        self.opacity.copy_(torch.maximum(self.opacity * self.decay, seen))
        self.occupied.copy_(self.opacity > self.opacity.mean().clamp(max=self.threshold))
        padded = functional.pad(self.opacity.view(1, 1, n, n, n), (1,) * 6)
        least = -functional.max_pool3d(-padded, 3, stride=1).view(-1)
        self.depth.copy_(-torch.log1p(-least.clamp(max=1 - 1e-6)) / self.step)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Corners (3,), (3,) of the smallest box around the occupied cells; an empty grid gives a box of size 0."""
        n = self.resolution
        filled = self.occupied.view(n, n, n)
        low, high = [], []
        for others in ((1, 2), (0, 2), (0, 1)):
            along = filled.any(dim=others[1]).any(dim=others[0]).nonzero()[:, 0]
            low.append(along[0] if len(along) else along.new_zeros(()))
            high.append(along[-1] + 1 if len(along) else along.new_zeros(()))
        scale = 2 * self.radius / n
        return torch.stack(low) * scale - self.radius, torch.stack(high) * scale - self.radius


def box_interval(origins: Tensor, directions: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (R,), (R,) at which rays (3, R) enter and leave the box (slab method); leave <= enter is a miss."""
    safe = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (low[:, None] - origins) / safe, (high[:, None] - origins) / safe
    near = torch.minimum(a, b).amax(dim=0).clamp(min=0)
    return near, torch.maximum(a, b).amin(dim=0)


@torch.no_grad()
def march(
    origins: Tensor,
    directions: Tensor,
    grid: OccupancyGrid,
    *,
    slots: int,
    jitter: Tensor | None = None,
    hidden: float = HIDDEN,
) -> Samples:
    """`slots` equal steps through the box of the occupied cells; samples in empty cells and hidden ones are dropped.

    Rays are (R, 3); `jitter` (R,) in [0, 1) moves all samples of a ray within their intervals (None: the middle). With
    `hidden` 0 nothing is taken for hidden.
    """
    n, o, d = grid.resolution, origins.t().contiguous(), directions.t().contiguous()
    near, far = box_interval(o, d, *grid.bounds())
    hit = (far > near).nonzero()[:, 0]
    o, d, near, length = o[:, hit], d[:, hit], near[hit], (far - near)[hit] / slots
    first = near + length * (0.5 if jitter is None else jitter[hit])
    t = torch.arange(slots, device=o.device, dtype=o.dtype) * length[:, None] + first[:, None]
    scale = n / (2 * grid.radius)
    start, slope = (o + grid.radius) * scale, d * scale
    cell = torch.zeros(t.shape, dtype=torch.int32, device=o.device)
    for axis in range(3):
        x = torch.addcmul(start[axis, :, None], slope[axis, :, None], t)
        cell = cell.mul_(n).add_(x.to(torch.int32).clamp_(0, n - 1))
    kept = grid.occupied.index_select(0, cell.view(-1)).view(t.shape)
    if hidden > 0:
        depth = grid.depth.index_select(0, cell.view(-1)).view(t.shape) * length[:, None]
        kept &= depth.cumsum(dim=1) - depth < -math.log(hidden)
    place = kept.view(-1).nonzero()[:, 0]
    row = torch.arange(len(hit), device=o.device)
    local = row.repeat_interleave(kept.sum(dim=1))
    distance = t.view(-1).index_select(0, place)
    points = torch.addcmul(o.index_select(1, local), d.index_select(1, local), distance)
    place += ((hit - row) * slots).index_select(0, local)
    return Samples(points.t(), distance, length[local], hit.index_select(0, local), place, len(origins), slots)


@torch.no_grad()
def march_nerfacc(
    origins: Tensor, directions: Tensor, grid: OccupancyGrid, *, slots: int, jitter: Tensor | None = None
) -> Samples:
    """The same on CUDA by nerfacc's kernel: steps of `grid.step`, however many a ray needs (`slots` is not used)."""
    from nerfacc.grid import traverse_grids

    n, radius = grid.resolution, grid.radius
    box = torch.tensor([[-radius] * 3 + [radius] * 3], device=origins.device)
    shift = torch.zeros_like(origins[:, 0]) if jitter is None else jitter * grid.step
    intervals, samples, _ = traverse_grids(
        origins, directions, grid.occupied.view(1, n, n, n), box, near_planes=shift, step_size=grid.step
    )
    begin, end = intervals.vals[intervals.is_left], intervals.vals[intervals.is_right]
    ray, distance = samples.ray_indices.long(), (begin + end) / 2
    counts = torch.bincount(ray, minlength=len(origins))
    rank = torch.arange(len(ray), device=ray.device) - (counts.cumsum(0) - counts)[ray]
    most = max(int(counts.max()), 1)
    points = origins[ray] + directions[ray] * distance[:, None]
    return Samples(points, distance, end - begin, ray, ray * most + rank, len(origins), most)


def marching_backend(choice: str, device: torch.device | str) -> tuple[str, str]:
    """("nerfacc" | "torch", why): nerfacc only on CUDA and only when it imports and one real call works.

    `choice` is "auto", "torch" or "nerfacc"; nothing that fails in the extension is an error. Raises ValueError for
    another choice.
    """
    if choice not in ("auto", "torch", "nerfacc"):
        raise ValueError(f"marching expects auto, torch or nerfacc, got {choice}")
    if choice == "torch":
        return "torch", "marching: torch, as asked for"
    if torch.device(device).type != "cuda":
        return "torch", f"marching: torch, because nerfacc's kernel needs CUDA and the device is {device}"
    try:
        grid = OccupancyGrid(resolution=2, radius=1.0, step=0.5, threshold=0.01).to(device)
        ray = torch.tensor([[-2.0, 0.1, 0.1], [1.0, 0.0, 0.0]], device=device)
        found = march_nerfacc(ray[:1], ray[1:], grid, slots=4).ray.numel()
    except Exception as error:
        return "torch", f"marching: torch, because nerfacc fails ({type(error).__name__}: {_first_line(error)})"
    if found == 0:
        return "torch", "marching: torch, because a test ray of nerfacc found no samples"
    return "nerfacc", "marching: nerfacc, a test call on CUDA worked"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
