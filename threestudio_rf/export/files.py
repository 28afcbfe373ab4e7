"""Mesh files that open in other programs as they were rendered: GLB, OBJ with MTL and PNG, PLY, STL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.core.files import write_files
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh
from threestudio_rf.export.texture import Atlas

Up = Literal["y", "z"]
Size = Literal["unit", "scene"]
Look = Literal["pbr", "unlit"]
UPS: tuple[Up, ...] = get_args(Up)
SIZES: tuple[Size, ...] = get_args(Size)
LOOKS: tuple[Look, ...] = get_args(Look)
FORMATS = ("glb", "obj", "ply", "stl")
DEFAULT = ("glb", "obj", "ply")
COLOUR = "_COLOR_0"
UNLIT = "KHR_materials_unlit"
VERTICES, INDICES = 34962, 34963
"""Targets of a buffer view: ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER."""


def to_linear(srgb: Tensor) -> Tensor:
    """Linear light in [0, 1] of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def write(
    mesh: Mesh,
    folder: Path | str,
    *,
    formats: Sequence[str] = DEFAULT,
    name: str = "model",
    atlas: Atlas | None = None,
    up: Up = "y",
    scale: Size = "unit",
    material: Look = "pbr",
) -> list[Path]:
    """Write `folder/name.<format>` for each format, all or none, and return the paths.

    Size: with `unit` the longest side of the bounding box is 1 and its middle the origin, with `scene` vertices stay
    where they are. Axes: GLB is +Y up and looks along +Z, as its standard says, so (x, y, z) becomes (y, z, x); OBJ
    likewise, because its readers take it so, or as the scene has it (+Z up, front +X) with `up` z; PLY and STL, which
    printers and point-cloud programs read, stay as the scene has them.

    Colours: with an `atlas` GLB holds its picture and OBJ names it (`name.mtl`, `name.png`); otherwise both have
    colours at the vertices, as PLY always has. In GLB those are linear light in 16 bits, as its standard asks;
    elsewhere sRGB. The material of GLB is neither metallic nor glossy (without one the standard's default is a metal),
    and `unlit` asks viewers to show the colours as they are, by KHR_materials_unlit.

    Raises EmptyGeometryError for a mesh without faces or with NaN, ValueError for an unknown format or choice, OSError
    when the disk is full; then no file is left behind and old ones are kept.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ValueError(f"mesh formats must be among {', '.join(FORMATS)}, got {', '.join(unknown) or 'none'}")
    for got, expected in ((up, ("y", "z")), (scale, ("unit", "scene")), (material, ("pbr", "unlit"))):
        if got not in expected:
            raise ValueError(f"expected {' or '.join(expected)}, got {got}")
    if not len(mesh.faces) or not torch.isfinite(mesh.vertices).all():
        raise EmptyGeometryError(f"a mesh of {len(mesh.vertices)} vertices and {len(mesh.faces)} faces is not written")
    placed = mesh.normalised() if scale == "unit" else mesh
    upright = _y_up(placed)
    data: dict[str, bytes] = {}
    for kind in formats:
        if kind == "glb":
            data["glb"] = _glb(upright, atlas, material)
        elif kind == "obj":
            data |= _obj(upright if up == "y" else placed, atlas, name)
        else:
            data[kind] = _plain(placed, kind)
    files = {Path(folder) / f"{name}.{kind}": content for kind, content in data.items()}
    write_files(files)
    return list(files)


def _y_up(mesh: Mesh) -> Mesh:
    return replace(mesh, vertices=mesh.vertices[:, [1, 2, 0]])


def _trimesh(mesh: Mesh, atlas: Atlas | None = None, **options: Any) -> Any:
    """The mesh, with an atlas cut as it says, with its normals across the cuts."""
    import trimesh

    vertices, normals, faces = mesh.vertices, mesh.normals, mesh.faces
    if atlas is not None:
        vertices, normals, faces = vertices[atlas.origin], normals[atlas.origin], atlas.faces
    arrays = {"vertices": vertices, "faces": faces, "vertex_normals": normals}
    return trimesh.Trimesh(**{key: array.numpy() for key, array in arrays.items()}, process=False, **options)


def _bytes(colours: Tensor) -> np.ndarray:
    """Opaque RGBA bytes (V, 4)."""
    return torch.nn.functional.pad((colours * 255).round(), (0, 1), value=255).byte().numpy()


def _plain(mesh: Mesh, kind: str) -> bytes:
    made = _trimesh(mesh, vertex_colors=_bytes(mesh.colours))
    content: bytes = made.export(file_type=kind, **({"vertex_normal": True} if kind == "ply" else {}))
    return content


def _obj(mesh: Mesh, atlas: Atlas | None, name: str) -> dict[str, bytes]:
    """The contents of the files, by suffix."""
    if atlas is None:
        made = _trimesh(mesh, vertex_colors=_bytes(mesh.colours))
        return {"obj": made.export(file_type="obj", include_normals=True, header=None).encode()}
    from PIL import Image
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import SimpleMaterial

    plain = {"ambient": [0] * 3, "diffuse": [255] * 3, "specular": [0] * 3}
    material = SimpleMaterial(image=Image.fromarray(atlas.picture), name=name, glossiness=1.0, **plain)
    made = _trimesh(mesh, atlas, visual=TextureVisuals(uv=atlas.uv.numpy(), material=material))
    text, others = made.export(
        file_type="obj", include_normals=True, return_texture=True, mtl_name=f"{name}.mtl", header=None
    )
    return {"obj": text.encode(), "mtl": others[f"{name}.mtl"] + b"\nillum 1\n", "png": others[f"{name}.png"]}


def _glb(mesh: Mesh, atlas: Atlas | None, look: str) -> bytes:
    from PIL import Image
    from trimesh.exchange.gltf import export_glb
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    picture = None if atlas is None else Image.fromarray(atlas.picture)
    material = PBRMaterial(
        name="surface",
        baseColorFactor=[255] * 4,
        baseColorTexture=picture,
        metallicFactor=0.0,
        roughnessFactor=1.0,
        doubleSided=True,
    )
    uv = None if atlas is None else atlas.uv.numpy()
    made = _trimesh(mesh, atlas, visual=TextureVisuals(uv=uv, material=material))
    if atlas is None:
        linear = torch.nn.functional.pad(to_linear(mesh.colours), (0, 1), value=1.0)
        made.vertex_attributes[COLOUR] = (linear * 65535).round().numpy().astype(np.uint16)

    def finish(tree: dict[str, Any]) -> None:
        _standard(tree)
        if look == "unlit":
            tree["extensionsUsed"] = [UNLIT]
            tree["materials"][0]["extensions"] = {UNLIT: {}}

    content: bytes = export_glb(made, include_normals=True, tree_postprocessor=finish)
    return content


def _standard(tree: dict[str, Any]) -> None:
    """In place: what the standard asks of a mesh and trimesh leaves out, colours under their name, and targets."""
    for mesh in tree["meshes"]:
        for part in mesh["primitives"]:
            attributes = part["attributes"]
            if COLOUR in attributes:
                attributes["COLOR_0"] = attributes.pop(COLOUR)
                accessor = _accessor(tree, attributes["COLOR_0"])
                accessor["normalized"] = True
            for index in attributes.values():
                tree["bufferViews"][_accessor(tree, index)["bufferView"]]["target"] = VERTICES
            tree["bufferViews"][_accessor(tree, part["indices"])["bufferView"]]["target"] = INDICES


def _accessor(tree: dict[str, Any], index: int) -> dict[str, Any]:
    """Of trimesh's tree, whose accessors are still a dictionary, or a list."""
    accessors = tree["accessors"]
    found: dict[str, Any] = (list(accessors.values()) if isinstance(accessors, dict) else accessors)[index]
    return found
