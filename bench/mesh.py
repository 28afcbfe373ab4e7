"""Exported meshes against the renderings that they come from: colour, smoothness, size, time.

    python bench/mesh.py RUN [RUN ...] [--faces 20000]      # folders of finished runs, as bench/gallery.py makes them

Each mesh is made as `task=export` makes it with `export.texture=1024 export.formats=[glb]`, and the file is read back
by trimesh. Columns: triangles; mean angle between neighbouring triangles in degrees, and that of the true solid by the
same grid, level and number of triangles, without noise and without smoothing; of the mean sRGB colour over 8 views,
where both show something, the error of the mesh against the rendering without its background, of the brightness in per
cent and of the worst channel in 255ths; the former for the field's own colour on the surface, as it was exported
before; bytes of the GLB; seconds of the surface and of the texture (xatlas and bake), CPU time of one thread.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.build.scene import build_scene
from threestudio_rf.app.run.run import Run, open_checkpoint
from threestudio_rf.app.settings.compose import from_text
from threestudio_rf.app.tasks.output.asset import atlas_of
from threestudio_rf.app.tasks.output.look import mesh_of
from threestudio_rf.export.files import write
from threestudio_rf.export.mesh import Mesh, extract
from threestudio_rf.scenes.base import Scene, Surface
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.scenes.surface.raster import barycentric, interpolate, project, rasterize
from threestudio_rf.tiny.world.truth import subject

SIZE, VIEWS = 96, 8
CPU = torch.device("cpu")


class Row(NamedTuple):
    """The figures of one run."""

    prompt: str
    faces: int
    angle: float
    ideal: float | None
    brightness: float
    channel: float
    brightness_before: float
    size: int
    seconds_surface: float
    seconds_texture: float


def stored(folder: Path, faces: int) -> tuple[Run, Scene]:
    """A finished run with the settings of this benchmark, and its scene."""
    loaded = open_checkpoint(folder / "ckpts")
    config = from_text(loaded.state["config"], str(folder))
    config.export.texture, config.export.faces = 1024, faces
    scene = build_scene(config.scene, config.seed, CPU)
    scene.load_state_dict(loaded.state["scene"])
    return Run(config, folder, CPU), scene


def angle(mesh: Mesh) -> float:
    """Mean angle between neighbouring triangles in degrees."""
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    return float(np.degrees(made.face_adjacency_angles).mean())


def ideal(run: Run, surface: Surface) -> float | None:
    """`angle` of the true solid on the same grid; None for a prompt without a known truth."""
    found, export = subject(run.config.prompt), run.config.export
    if found is None:
        return None

    def density(points: Tensor) -> Tensor:
        return (0.1 - found.solid.sdf(points)).clamp_min(0)

    true = extract(
        density,
        torch.ones_like,
        radius=surface.radius,
        resolution=export.resolution,
        threshold=0.1,
        faces=export.faces,
    )
    return angle(true)


def painted(mesh: Mesh, colours: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Colours (C, N) of the vertices as the views show them, and the pixels (N,) of these."""
    screen = project(mesh.vertices, camera)
    seen = rasterize(screen, mesh.faces)
    return interpolate(colours.t(), mesh.faces, seen, barycentric(screen, mesh.faces, seen)), seen.cell


def of_file(path: Path, camera: Camera) -> tuple[Tensor, Tensor]:
    """The same of a GLB with a texture, as trimesh reads it."""
    read = trimesh.load(path, force="mesh", process=False)
    assert isinstance(read, trimesh.Trimesh)
    vertices = torch.from_numpy(np.array(read.vertices, dtype=np.float32)[:, [2, 0, 1]])
    mesh = Mesh(vertices, torch.from_numpy(np.array(read.faces)), torch.zeros_like(vertices))
    uv, cell = painted(mesh, torch.from_numpy(np.array(read.visual.uv, dtype=np.float32)), camera)
    picture = torch.from_numpy(np.array(read.visual.material.baseColorTexture.convert("RGB"))).float() / 255
    size = len(picture)
    column, row = ((x * size).long().clamp(0, size - 1) for x in (uv[0], 1 - uv[1]))
    return picture[row, column].t(), cell


def errors(shown: tuple[Tensor, Tensor], own: Tensor, opacity: Tensor) -> tuple[float, float]:
    """Of the mean colour, pixels weighted by opacity (N,), against `own` (3, N), the rendering's colour times opacity:
    the error of its brightness in per cent, and of its worst channel in 255ths."""
    colour, cell = shown
    share = opacity[cell] * (opacity[cell] > 0.5)
    mesh, rendering = (colour * share).sum(1) / share.sum(), own[:, cell][:, share > 0].sum(1) / share.sum()
    return float(100 * (mesh.mean() / rendering.mean() - 1)), float(255 * (mesh - rendering).abs().max())


def spent() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def measure(folder: Path, faces: int) -> Row:
    """The figures of a finished run."""
    run, scene = stored(folder, faces)
    assert isinstance(scene, HashGridNeRF)
    eye = run.config.camera
    camera = sphere_views(VIEWS, height=SIZE, width=SIZE, distance=eye.eval_distance, fovy=eye.eval_fovy)
    with torch.no_grad():
        seen = scene.render(camera)
        directions = camera.rays()[1]
        behind = scene.background(directions.reshape(-1, 3)).view_as(directions).movedim(-1, 1)
    rgb = (seen.rgb - (1 - seen.opacity) * behind).movedim(1, 0).flatten(1)
    opacity = seen.opacity.flatten()
    begun = spent()
    mesh = mesh_of(run, scene)
    surface, begun = spent() - begun, spent()
    atlas = atlas_of(run, scene, mesh)
    texture = spent() - begun
    with tempfile.TemporaryDirectory() as place:
        (path,) = write(mesh, place, formats=("glb",), atlas=atlas, scale="scene")
        size = path.stat().st_size
        brightness, channel = errors(of_file(path, camera), rgb, opacity)
    with torch.no_grad():
        own = replace(mesh, colours=scene.colour(mesh.vertices))
    before, _ = errors(painted(own, own.colours, camera), rgb, opacity)
    prompt = run.config.prompt
    return Row(
        prompt, len(mesh.faces), angle(mesh), ideal(run, scene), brightness, channel, before, size, surface, texture
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--faces", type=int, default=20_000, help="most triangles")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("prompt", "triangles", "angle", "ideal", "brightness %", "channel /255", "before %", "GLB MB")
    print(f"| {' | '.join((*names, 'surface s', 'texture s'))} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for folder in options.runs:
        row = measure(folder, options.faces)
        best = "-" if row.ideal is None else f"{row.ideal:.2f}"
        print(
            f"| {row.prompt} | {row.faces} | {row.angle:.2f} | {best} | {row.brightness:+.1f} | {row.channel:.1f} "
            f"| {row.brightness_before:+.1f} | {row.size / 1e6:.2f} | {row.seconds_surface:.1f} "
            f"| {row.seconds_texture:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
