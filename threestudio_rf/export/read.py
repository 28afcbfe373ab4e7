"""Somebody else's mesh: read by trimesh, as one body, turned z up and scaled into a scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.export.mesh import Mesh

LARGEST = 2_000_000
"""Triangles beyond which a file is refused."""
FILL = 5 / 6
"""The longest side of what is read, as a share of the scene's cube: as large as the embedded priors draw."""
UP = {".ply": "z", ".stl": "z"}
TURN = {"x": [1, 2, 0], "y": [2, 0, 1], "z": [0, 1, 2]}
"""Where x, y and z of the scene are found in a file with that axis up."""
GREY = 0.7


class MeshFileError(ValueError):
    """A file that cannot be used, in one line."""


@dataclass(frozen=True)
class Read:
    """`mesh` in the scene's coordinates, the factor it was scaled by, its upward axis in the file, how many of its
    edges do not lie between two faces, and whether it had colours."""

    mesh: Mesh
    scale: float
    up: str
    open_edges: int
    coloured: bool


def read_mesh(path: Path, *, radius: float, up: str = "auto") -> Read:
    """The mesh of a GLB, OBJ, PLY or STL file, all its parts together: its middle at the origin, its longest side
    `FILL` of the cube [-radius, radius]^3, `up` ("x", "y", "z"; auto: y, z for PLY and STL) turned to z. Colours are
    those of its texture or vertices as sRGB, grey where it has none.

    Raises MeshFileError for what cannot be read, has no faces between different points, too many, or coordinates that
    are not finite.
    """
    vertices, faces, colours = _loaded(path)
    if not len(faces):
        raise MeshFileError(f"{path} has no triangle")
    if len(faces) > LARGEST:
        raise MeshFileError(f"{path} has {len(faces):,} triangles, expected at most {LARGEST:,}: decimate it first")
    if not bool(torch.isfinite(vertices).all()):
        raise MeshFileError(f"{path} has points that are not finite")
    up = UP.get(path.suffix.lower(), "y") if up == "auto" else up
    vertices = vertices[:, TURN[up]]
    used = vertices[faces.unique()]
    low, high = used.amin(0), used.amax(0)
    size = float((high - low).amax())
    scale = 2 * radius * FILL / size
    placed = ((vertices - (low + high) / 2) * scale).float()
    grey = torch.full((len(vertices), 3), GREY)
    mesh = Mesh(placed, faces, grey if colours is None else colours)
    return Read(mesh, scale, up, _open(faces), colours is not None)


def _loaded(path: Path) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vertices in float64, faces and colours; vertices that only differ in their texture coordinates are merged."""
    import numpy as np
    import trimesh

    gltf = path.suffix.lower() in (".glb", ".gltf")
    try:
        found: Any = trimesh.load(path, force="mesh", process=False)
        if gltf and _plain(found):  # trimesh reads a material or the colours of vertices, not both
            found = trimesh.load(path, force="mesh", process=False, skip_materials=True)
    except Exception as error:  # a foreign reader raises whatever its formats do
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise MeshFileError(f"{path} cannot be read as a mesh: {line}") from None
    exact = _glb_colours(path) if path.suffix.lower() == ".glb" and _plain(found) else None
    colours = _colours(found, linear=gltf) if exact is None or len(exact) != len(found.vertices) else exact
    vertices, faces = np.asarray(found.vertices, np.float64), np.asarray(found.faces, np.int64)
    _, first, place = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    faces = place.reshape(-1)[faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    kept = None if colours is None else torch.from_numpy(colours[first]).float()
    return torch.from_numpy(vertices[first]), torch.from_numpy(faces), kept


def _plain(found: Any) -> bool:
    """Whether a mesh is without a picture."""
    visual = getattr(found, "visual", None)
    material = getattr(visual, "material", None)
    return material is None or getattr(material, "baseColorTexture", None) is None


def _glb_colours(path: Path) -> Any:
    """COLOR_0 of a GLB with one primitive, (V, 3) as sRGB in [0, 1]: trimesh cuts 16 bits down to the lower 8."""
    import json
    import struct

    import numpy as np

    data = path.read_bytes()
    length = struct.unpack_from("<I", data, 12)[0]
    tree, start = json.loads(data[20 : 20 + length]), 28 + length
    primitives = [primitive for mesh in tree.get("meshes", []) for primitive in mesh["primitives"]]
    if len(primitives) != 1 or "COLOR_0" not in primitives[0]["attributes"]:
        return None
    accessor = tree["accessors"][primitives[0]["attributes"]["COLOR_0"]]
    if "bufferView" not in accessor or "sparse" in accessor:
        return None
    view = tree["bufferViews"][accessor["bufferView"]]
    kind: Any = {5121: np.dtype("u1"), 5123: np.dtype("<u2"), 5126: np.dtype("<f4")}[accessor["componentType"]]
    width = {"VEC3": 3, "VEC4": 4}[accessor["type"]]
    start += view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    shape, strides = (accessor["count"], width), (view.get("byteStride", width * kind.itemsize), kind.itemsize)
    found: Any = np.ndarray(shape, kind, data, start, strides)[:, :3].astype(np.float64)
    return _srgb(found if kind.kind == "f" else found / np.iinfo(kind).max)


def _srgb(linear: Any) -> Any:
    """sRGB of linear light (IEC 61966-2-1)."""
    import numpy as np

    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _colours(found: Any, *, linear: bool) -> Any:
    """Colours (V, 3) in [0, 1] as sRGB; None without. Vertex colours of glTF are linear light, textures are not."""
    import numpy as np

    kind = found.visual.kind
    if kind is None:
        return None
    try:
        seen = np.asarray((found.visual.to_color() if kind == "texture" else found.visual).vertex_colors)
    except (ValueError, AttributeError, IndexError, TypeError):
        return None
    if len(seen) != len(found.vertices):
        return None
    colours = seen[:, :3].astype(np.float64) / 255
    return _srgb(colours) if linear and kind == "vertex" else colours


def _open(faces: Tensor) -> int:
    """How many edges do not lie between two faces."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    return int((pairs.unique(dim=0, return_counts=True)[1] != 2).sum())
