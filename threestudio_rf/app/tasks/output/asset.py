"""The files of a mesh, by the settings of `export`; what an optional package is missing for is told and left out."""

from __future__ import annotations

from pathlib import Path

from threestudio_rf.app.console import LOG
from threestudio_rf.app.run.extras import optional
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import one_of
from threestudio_rf.app.settings.groups import ExportConfig
from threestudio_rf.export.files import LOOKS, SIZES, UPS, write
from threestudio_rf.export.mesh import Mesh
from threestudio_rf.export.texture import Atlas, colours_of, texture_size, textured
from threestudio_rf.export.unwrap import UnwrapError
from threestudio_rf.scenes.base import Scene, Surface

UNWRAPPED = 50_000
"""The most triangles that export.texture=auto cuts and lays flat: xatlas takes about a minute for so many."""


def most_faces(settings: ExportConfig) -> int:
    """`export.faces`, or 0 where the package that takes triangles away is missing."""
    if settings.faces and optional("fast_simplification", "the mesh keeps all its triangles") is None:
        return 0
    return settings.faces


def write_asset(run: Run, scene: Scene, mesh: Mesh, folder: Path) -> list[Path]:
    """`model.*` in `folder`. EmptyGeometryError for a mesh without faces, OSError when the disk is full."""
    settings = run.config.export
    return write(
        mesh,
        folder,
        formats=settings.formats,
        atlas=atlas_of(run, scene, mesh),
        up=one_of(settings.up, UPS),
        scale=one_of(settings.scale, SIZES),
        material=one_of(settings.material, LOOKS),
    )


def atlas_of(run: Run, scene: Scene, mesh: Mesh) -> Atlas | None:
    """The texture that `export.texture` asks for; None without one."""
    settings, wanted = run.config.export, run.config.export.texture
    if wanted == "none" or not {"glb", "obj"} & set(settings.formats) or not isinstance(scene, Surface):
        return None
    if wanted == "auto" and len(mesh.faces) > UNWRAPPED:
        LOG.info(
            "no texture for %d triangles, colours are at the vertices; export.texture=1024 makes one all the same, "
            "export.faces=20000 makes it quick",
            len(mesh.faces),
        )
        return None
    if optional("xatlas", "colours are at the vertices, without a texture") is None:
        return None
    cell = 2 * scene.radius / (settings.resolution - 1)
    size = texture_size(mesh, cell) if wanted == "auto" else int(wanted)
    try:
        return textured(mesh, colours_of(scene, mesh, device=run.device), size)
    except UnwrapError as error:
        LOG.warning("no texture, colours are at the vertices: %s", error)
        return None
