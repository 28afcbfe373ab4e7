"""Where space is empty: a grid of opacities that follows the field, and marching that skips what cannot be seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from threestudio_rf.scenes.camera import sent
from threestudio_rf.scenes.kernels.available import INTERPRETED, unavailable
from threestudio_rf.scenes.volume import Samples, accumulate, packed_weights

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
        seen = -torch.expm1(-density(sent(points, self.opacity.device)) * self.step)
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
            along = filled.any(dim=others[1]).any(dim=others[0]).int()
            low.append(along.argmax())
            high.append((n - along.flip(0).argmax()) * along.amax())
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


@torch.no_grad()
def march_triton(
    origins: Tensor,
    directions: Tensor,
    grid: OccupancyGrid,
    *,
    slots: int,
    jitter: Tensor | None = None,
    hidden: float = HIDDEN,
) -> Samples:
    """`march` by our kernel, whose samples are weighed and summed by kernels too."""
    from threestudio_rf.scenes.kernels.rays import walk

    near, far = box_interval(origins.t(), directions.t(), *grid.bounds())
    length = (far - near).clamp(min=0) / slots
    start, points, distance, place = walk(
        origins,
        directions,
        (near, length),
        torch.full_like(near, 0.5) if jitter is None else jitter.to(near),
        occupied=grid.occupied,
        depth=grid.depth,
        radius=grid.radius,
        slots=slots,
        limit=-math.log(hidden) if hidden > 0 else math.inf,
    )
    ray = torch.arange(len(origins), device=origins.device).repeat_interleave(start.diff(), output_size=len(distance))
    return Samples(points, distance, length[ray], ray, place, len(origins), slots, start)


MARCHES: dict[str, Callable[..., Samples]] = {"torch": march, "triton": march_triton, "nerfacc": march_nerfacc}


def marching_backend(choice: str, device: torch.device | str) -> tuple[str, str]:
    """("triton" | "nerfacc" | "torch", why): a kernel only where it is installed, runs on `device` and gives what it
    should in one real call.

    `choice` is "auto", "torch", "triton" or "nerfacc"; nothing that fails in an extension is an error. Raises
    ValueError for another choice.
    """
    tried = {"auto": ("triton", "nerfacc"), "triton": ("triton",), "nerfacc": ("nerfacc",), "torch": ()}
    if choice not in tried:
        raise ValueError(f"marching expects {', '.join(tried)}, got {choice}")
    if choice == "torch":
        return "torch", "marching: torch, as asked for"
    if torch.device(device).type != "cuda" and not (choice == "triton" and INTERPRETED):
        kernels = "kernels need" if choice == "auto" else f"{choice} needs"
        return "torch", f"marching: torch, because {kernels} CUDA and the device is {device}"
    failures: list[str] = []
    for name in tried[choice]:
        failure = _failure(name, device)
        if not failure:
            before = f" ({'; '.join(failures)})" if failures else ""
            return name, f"marching: {name}, a test call on {device} worked{before}"
        failures.append(failure)
    return "torch", f"marching: torch, because {'; '.join(failures)}"


def _failure(name: str, device: torch.device | str) -> str:
    """Why this backend cannot be used on `device`, in one line; empty when a test ray has the opacity it should."""
    if name == "triton" and (missing := unavailable(device)):
        return missing
    try:
        grid = OccupancyGrid(resolution=2, radius=1.0, step=0.5, threshold=0.01).to(device)
        ray = torch.tensor([[-2.0, 0.1, 0.1], [1.0, 0.0, 0.0]], device=device)
        samples = MARCHES[name](ray[:1], ray[1:], grid, slots=4)
        density = torch.full_like(samples.distance, 0.7).requires_grad_()
        opacity = accumulate(packed_weights(density, samples)[None], samples).sum()
        opacity.backward()
        slope = 0.0 if density.grad is None else density.grad.sum().item()
    except Exception as error:
        return f"{name} fails ({type(error).__name__}: {_first_line(error)})"
    if len(samples.distance) == 0:
        return f"a test ray of {name} found no samples"
    through = samples.length.sum().item()
    light = math.exp(-0.7 * through)
    right = max(abs(opacity.item() - 1 + light), abs(slope - through * light), abs(through - 2) - 0.5) < 1e-3
    return "" if right else f"{name} gives a test ray the opacity {opacity.item():.4f}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
