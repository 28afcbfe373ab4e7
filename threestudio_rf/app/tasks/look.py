"""Pictures, videos and meshes of a scene in its run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from threestudio_rf.app.build.scene import turntable
from threestudio_rf.app.console import LOG
from threestudio_rf.app.run.run import Run
from threestudio_rf.export.media import contact_sheet, gif, png, rendering_rows, video
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh, extract, write
from threestudio_rf.scenes.base import Rendering
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.trainer.log import row_of_pictures

FPS = 24.0
SHEET_VIEWS = 8


def renderings(
    scene: HashGridNeRF, camera: Camera, device: torch.device, *, normals: bool = False
) -> Iterator[Rendering]:
    """One view at a time, on the CPU, without gradients."""
    for i in range(len(camera)):
        with torch.no_grad():
            seen = scene.render(camera.select([i]).to(device), normals=normals)
        yield Rendering(*(None if x is None else x.cpu() for x in seen))  # type: ignore[arg-type]


def _grey(picture: Tensor) -> Tensor:
    return picture.expand(3, -1, -1)


def validation(run: Run, scene: HashGridNeRF, step: int) -> Tensor:
    """`save/it<step>-<i>.png`: colour and opacity of a few views; the colours (N, 3, H, W). A full disk costs a
    picture, not the run."""
    camera = turntable(run.config.camera, run.config.camera.validation_views)
    views = list(renderings(scene, camera, run.device))
    for i, seen in enumerate(views):
        both = torch.stack([seen.rgb[0], _grey(seen.opacity[0])])
        try:
            png(run.save(f"it{step}-{i}.png"), row_of_pictures(both))
        except OSError as error:
            LOG.warning("no validation picture: %s", error.strerror or error)
            break
    return torch.cat([seen.rgb for seen in views])


def test(run: Run, scene: HashGridNeRF, step: int) -> list[Path]:
    """The turntable: pictures, mp4 and GIF, and the contact sheet. OSError when the disk is full."""
    camera = turntable(run.config.camera, run.config.camera.test_views)
    frames = [seen.rgb[0] for seen in renderings(scene, camera, run.device)]
    for i, frame in enumerate(frames):
        png(run.save(f"it{step}-test", f"{i}.png"), frame)
    made = video(run.save(f"it{step}-test.mp4"), torch.stack(frames), FPS)
    made.append(gif(run.save(f"it{step}-test.gif"), frames[:: max(1, len(frames) // 40)], FPS / 3))
    around = turntable(run.config.camera, SHEET_VIEWS)
    views = list(renderings(scene, around, run.device, normals=True))
    rgb, opacity = torch.cat([seen.rgb for seen in views]), torch.cat([seen.opacity for seen in views])
    normal = torch.cat([seen.normal for seen in views if seen.normal is not None])
    titles = [f"{azimuth:.0f}°" for azimuth in around.azimuth.tolist()]
    sheet = contact_sheet(
        rendering_rows(Rendering(rgb, opacity, normal=normal)),
        titles=titles,
        cell=min(128, run.config.camera.eval_size),
    )
    made.append(png(run.save(f"it{step}-sheet.png"), sheet))
    return made


def mesh_of(run: Run, scene: HashGridNeRF) -> Mesh:
    """The surface at `export.threshold`; where that level has none, at the automatic one. EmptyGeometryError."""
    settings = run.config.export

    def at(threshold: float | str) -> Mesh:
        return extract(
            scene.field.density,
            lambda points: scene.field(points)[1],
            radius=run.config.scene.radius,
            resolution=settings.resolution,
            threshold=threshold,  # type: ignore[arg-type]
            device=run.device,
        )

    if settings.threshold == "auto":
        return at("auto")
    try:
        return at(float(settings.threshold))
    except EmptyGeometryError as error:
        LOG.warning("%s; the automatic level is used", error)
        return at("auto")


def export(run: Run, scene: HashGridNeRF, step: int) -> Mesh:
    """`save/it<step>-export/model.*`. EmptyGeometryError, or OSError when the disk is full; never a broken file."""
    mesh = mesh_of(run, scene)
    for path in write(mesh, run.save(f"it{step}-export"), formats=run.config.export.formats):
        LOG.info("wrote %s", path)
    return mesh
