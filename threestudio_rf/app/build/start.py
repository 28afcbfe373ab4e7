"""The start of a mesh: the surface of a trained field, or a mesh file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.core.random import generator
from threestudio_rf.export.distance import signed_distance
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh, extract
from threestudio_rf.export.read import MeshFileError, read_mesh
from threestudio_rf.scenes.base import Scene, Surface
from threestudio_rf.scenes.mesh import MeshScene

MESH_FILES = (".glb", ".gltf", ".obj", ".ply", ".stl")
POINTS = 100_000
"""Surface points whose colours are learned."""


def mesh_file(config: Config) -> Mesh:
    """The mesh of `init=<file>`, in the scene's coordinates; UserError for one that cannot be used."""
    path, mesh = Path(config.weights).expanduser(), config.scene.mesh
    try:
        read = read_mesh(path, radius=config.scene.radius, up=mesh.up)
    except MeshFileError as error:
        raise UserError(f"init={config.weights}: {error}") from None
    LOG.info(
        "%s: %d triangles, scaled by %.4g, %s is up (scene.mesh.up=z where it lies on its face)%s",
        path.name,
        len(read.mesh.faces),
        read.scale,
        read.up,
        "" if read.coloured else ", no colours: it begins grey",
    )
    if read.open_edges:
        LOG.warning(
            "%s: %d edges do not lie between two triangles; what is inside is decided by rays along three axes",
            path.name,
            read.open_edges,
        )
    return read.mesh


def start_mesh(scene: Scene, origin: Surface | Mesh, config: Config) -> None:
    """Give a fresh mesh the shape and the colours of `origin`: a field's surface at its automatic level, as it is
    exported, with its hash grid to begin with. UserError for one without a surface or an inside."""
    if not isinstance(scene, MeshScene):
        raise UserError(f"scene={config.scene.name} cannot begin with a mesh")
    mesh = origin if isinstance(origin, Mesh) else _surface(scene, origin, config)
    try:
        distance = signed_distance(mesh.vertices, mesh.faces, scene.resolution, scene.radius)
    except ValueError as error:
        raise UserError(f"init={config.weights}: {error}") from None
    if not bool((distance < 0).any()):
        raise UserError(
            f"init={config.weights}: nothing lies inside of it (it may be open, or thinner than a cell of "
            f"{scene.cell:.3g}); a closed mesh or a larger scene.mesh.resolution is needed"
        )
    scene.begin(distance.to(scene.distance.device))
    steps, draws = config.scene.mesh.paint_steps, generator(config.seed, 0, "paint")
    apart = scene.paint(*_points(mesh, draws), steps=steps, generator=draws)
    faces = len(scene.surface().faces)
    LOG.info("the mesh begins with %d triangles; colours differ by %.3f from those of its origin", faces, apart)


def _surface(scene: MeshScene, origin: Surface, config: Config) -> Mesh:
    """The mesh of a field, whose hash grid and background the scene takes over."""
    if isinstance(origin, Scene):
        shared = {k: v for k, v in origin.state_dict().items() if k.startswith(("field.", "background."))}
        scene.load_state_dict(shared, strict=False)
    try:
        return extract(
            origin.density,
            origin.colour,
            radius=origin.radius,
            resolution=max(96, 2 * scene.resolution),
            device=scene.distance.device,
        )
    except EmptyGeometryError as error:
        raise UserError(f"init={config.weights}: {error}") from None


def _points(mesh: Mesh, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (N, 3) evenly over a mesh, with the colours (N, 3) between those of its vertices."""
    corners = mesh.vertices[mesh.faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    place = torch.rand(POINTS, generator=draws, dtype=torch.float64) * area.double().sum()
    face = torch.searchsorted(area.double().cumsum(0), place).clamp(max=len(area) - 1)
    a, b = torch.rand(2, POINTS, 1, generator=draws)
    a, b = torch.where(a + b > 1, 1 - a, a), torch.where(a + b > 1, 1 - b, b)
    share = torch.cat((1 - a - b, a, b), -1)[..., None]
    return (share * corners[face]).sum(1), (share * mesh.colours[mesh.faces[face]]).sum(1)
