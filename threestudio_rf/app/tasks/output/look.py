"""Pictures, videos and meshes of a scene in its run folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from threestudio_rf.app.build.picture import read_picture
from threestudio_rf.app.build.views import turntable
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks.output.asset import most_faces, write_asset
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.export.media import contact_sheet, gif, pictures_of, png, rendering_rows, video
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh, extract
from threestudio_rf.export.shell import batches
from threestudio_rf.export.tidy import decimated, without_specks
from threestudio_rf.scenes.base import Meshed, Rendering, Scene, Surface
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.trainer.log import row_of_pictures

TURN = 4.0
"""Seconds of one turn of a video."""
PROGRESS_FPS = 12.0
LARGE = 256
"""Cells a side from which a surface is announced before it is looked for."""
SHEET_VIEWS = 8


def renderings(scene: Scene, camera: Camera, device: torch.device, *, normals: bool = False) -> Iterator[Rendering]:
    """One view after the other, on the CPU, without gradients. On a CPU as many are drawn at once as torch has threads,
    each by one of them: small operations keep a core busier than shared ones keep several."""

    def view(i: int) -> Rendering:
        with torch.no_grad():
            seen = scene.render(camera.select([i]).to(device), normals=normals)
        return Rendering._make(None if x is None else x.cpu() for x in seen)

    yield view(0)  # alone: a scene may decide at its first view how it renders
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if min(threads, len(camera) - 1) < 2:
        yield from map(view, range(1, len(camera)))
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        ahead: deque[Future[Rendering]] = deque()
        try:
            for i in range(1, len(camera)):
                ahead.append(pool.submit(view, i))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def turn_fps(frames: int) -> float:
    """Frames per second of one turn of so many frames."""
    return min(30.0, max(4.0, frames / TURN))


def _bytes(picture: Tensor) -> Tensor:
    """A picture as bytes: a quarter of the memory."""
    return (picture.clamp(0, 1) * 255).round().byte()


def _grey(picture: Tensor) -> Tensor:
    return picture.expand(3, -1, -1)


def _remove_stale(folder: Path, pattern: str, *, kept: list[str]) -> None:
    """Take away numbered pictures of an earlier look at the same step, which are not of this one."""
    for path in folder.glob(pattern):
        if path.stem.rpartition("-")[2].isdigit() and path.name not in kept:
            path.unlink(missing_ok=True)


def validation(result: Result) -> Tensor:
    """`save/it<step>-<i>.png`: colour and opacity of a few views; the colours (N, 3, H, W). A full disk costs a
    picture, not the run."""
    run = result.run
    camera = turntable(run.config.camera, run.config.camera.validation_views)
    views = list(renderings(result.scene, camera, run.device))
    for i, seen in enumerate(views):
        both = torch.stack([seen.rgb[0], _grey(seen.opacity[0])])
        try:
            png(run.save(f"it{result.step}-{i}.png"), row_of_pictures(both))
        except OSError as error:
            LOG.warning("no validation picture: %s", error.strerror or error)
            break
    else:
        _remove_stale(
            run.save(), f"it{result.step}-*.png", kept=[f"it{result.step}-{i}.png" for i in range(len(views))]
        )
    return torch.cat([seen.rgb for seen in views])


def progress_frame(result: Result, frame: int) -> None:
    """`save/progress/<frame>.png`: the object at this step, seen from the front at first and once around by the last
    of `trainer.progress` frames. A full disk costs the frame, not the run."""
    run = result.run
    camera = turntable(run.config.camera, run.config.trainer.progress).select([frame])
    (seen,) = renderings(result.scene, camera, run.device)
    try:
        png(run.save("progress", f"{frame:05d}.png"), seen.rgb[0])
    except OSError as error:
        LOG.warning("no frame of progress.mp4: %s", error.strerror or error)


def progress(result: Result) -> list[Path]:
    """`save/progress.mp4` of the frames that were taken while the run went on; nothing where there are none. OSError
    when the disk is full."""
    files = sorted(result.run.save("progress").glob("*.png"))
    if not files:
        return []
    return video(result.run.save("progress.mp4"), [read_picture(path, "frame") for path in files], PROGRESS_FPS)


def test(result: Result) -> list[Path]:
    """The turntable: pictures, mp4 and GIF, and the contact sheet. OSError when the disk is full."""
    run, scene, step = result.run, result.scene, result.step
    settings = run.config.camera
    camera = turntable(settings, settings.test_views, scale=settings.video_scale)
    frames, small = [], []
    for i, seen in enumerate(renderings(scene, camera, run.device, normals="normal" in settings.video_maps)):
        png(run.save(f"it{step}-test", f"{i}.png"), seen.rgb[0])
        shown = pictures_of(seen)
        frames.append(_bytes(torch.cat([shown[name][0] for name in settings.video_maps if name in shown], dim=-1)))
        small.append(_bytes(torch.nn.functional.avg_pool2d(seen.rgb, settings.video_scale)[0]))
    _remove_stale(run.save(f"it{step}-test"), "*.png", kept=[f"{i}.png" for i in range(len(frames))])
    made = video(run.save(f"it{step}-test.mp4"), frames, turn_fps(len(frames)))
    every = max(1, len(small) // 40)
    made.append(gif(run.save(f"it{step}-test.gif"), small[::every], turn_fps(len(small)) / every))
    around = turntable(run.config.camera, SHEET_VIEWS)
    views = list(renderings(scene, around, run.device, normals=True))
    rgb, opacity = torch.cat([seen.rgb for seen in views]), torch.cat([seen.opacity for seen in views])
    normals = [seen.normal for seen in views if seen.normal is not None]
    titles = [f"{azimuth:.0f}°" for azimuth in around.azimuth.tolist()]
    sheet = contact_sheet(
        rendering_rows(Rendering(rgb, opacity, normal=torch.cat(normals) if normals else None)),
        titles=titles,
        cell=min(128, run.config.camera.eval_size),
    )
    made.append(png(run.save(f"it{step}-sheet.png"), sheet))
    return made


def mesh_of(run: Run, scene: Scene) -> Mesh:
    """The surface at `export.threshold`; where that level has none, at the automatic one. EmptyGeometryError; UserError
    for a scene that has none at all."""
    settings = run.config.export
    if not isinstance(scene, Surface):
        raise UserError(f"scene={run.config.scene.name} has no surface, so there is no mesh to export")
    if isinstance(scene, Meshed):
        return own_mesh(scene, run)
    surface: Surface = scene
    faces = most_faces(settings)
    if settings.resolution >= LARGE:
        LOG.info("surface: %d^3 densities, which takes minutes on a CPU", settings.resolution)

    def at(threshold: float | Literal["auto"]) -> Mesh:
        return extract(
            surface.density,
            surface.colour,
            radius=surface.radius,
            resolution=settings.resolution,
            threshold=threshold,
            smooth=settings.smooth,
            faces=faces,
            device=run.device,
        )

    if settings.threshold == "auto":
        return at("auto")
    try:
        return at(float(settings.threshold))
    except EmptyGeometryError as error:
        LOG.warning("%s; the automatic level is used", error)
        return at("auto")


def own_mesh(scene: Meshed, run: Run) -> Mesh:
    """The mesh of a scene that has one, without specks, with at most `export.faces` triangles."""
    with torch.no_grad():
        found = scene.surface()
        if not len(found.faces):
            raise EmptyGeometryError("the mesh has no faces left")
        vertices, faces = without_specks(found.vertices.cpu(), found.faces.cpu(), 0.01)
        vertices, faces = decimated(vertices, faces, most_faces(run.config.export))
        colours = batches(scene.colour, vertices, 1 << 18, run.device)
    return Mesh(vertices, faces, colours, level=scene.level)


def export(result: Result) -> Mesh | None:
    """`save/it<step>-export/model.*`: a mesh, or the scene's own files. EmptyGeometryError, or OSError when the disk is
    full; never a broken file."""
    run, own, mesh = result.run, result.row.write, None
    folder = run.save(f"it{result.step}-export")
    before = sorted(path.name for path in folder.glob("model*"))
    if own is not None:
        paths = own(result.scene, folder)
    else:
        mesh = mesh_of(run, result.scene)
        paths = write_asset(run, result.scene, mesh, folder)
    for path in paths:
        LOG.info("wrote %s%s", path, " in the place of an earlier one" if path.name in before else "")
    left = [name for name in before if name not in {path.name for path in paths}]
    if left and paths:
        LOG.info("left from an earlier export: %s", ", ".join(left))
    return mesh
