"""The rasteriser, forward and backward: a ball of 20,480 faces in 2 views, its colours, cover, depth and outlines.

    python bench/raster.py [--threads 2] [--repeats 15]

Each repetition projects, rasterises, finds the edges of the mesh, interpolates, blends the outlines and goes back to
vertices and colours. Seconds on the clock mean little where other programs run; CPU seconds count all threads of this
one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.surface.edges import antialias, crossings, edges_of
from threestudio_rf.scenes.surface.raster import barycentric, corners_of, interpolate, project, rasterize, spread


def picture(vertices: Tensor, faces: Tensor, colours: Tensor, camera: Camera) -> Tensor:
    """Maps (5, B * H * W): rgb, cover and distance along the viewing axis."""
    screen = project(vertices, camera)
    found = rasterize(screen, faces, cull=True)
    weights = barycentric(screen, faces, found)
    z = (weights * corners_of(screen.z, found.view, faces.index_select(0, found.face).t().contiguous())).sum(0)
    seen = torch.cat((interpolate(colours, faces, found, weights), torch.ones_like(z)[None], z[None]))
    maps = spread(seen, found, screen)
    depth = torch.where(maps[3] > 0, maps[4], torch.inf).detach()
    return antialias(maps, crossings(screen, edges_of(faces), depth))


def seconds(size: int, repeats: int) -> tuple[float, float]:
    """Medians on the clock and of the CPU for one picture of two views and its gradient."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    vertices, faces = torch.tensor(ball.vertices).float().requires_grad_(), torch.tensor(ball.faces).long()
    colours = torch.rand(3, len(vertices), generator=torch.Generator().manual_seed(0)).requires_grad_()
    camera = Camera(*(torch.tensor(v) for v in ([40.0, 200.0], [15.0, 15.0], [1.8, 1.8], [46.0, 46.0])), size, size)
    clock, cpu = [], []
    for _ in range(repeats + 2):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        picture(vertices, faces, colours, camera).square().mean().backward()
        clock.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
    return statistics.median(clock[2:]), statistics.median(cpu[2:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"20,480 faces, 2 views, {arguments.threads} threads, median of {arguments.repeats}")
    print("| size | ms on the clock | ms of CPU |\n|---|---|---|")
    for size in (64, 128, 256):
        clock, cpu = seconds(size, arguments.repeats)
        print(f"| {size} | {1e3 * clock:.1f} | {1e3 * cpu:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
