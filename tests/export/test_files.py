"""Mesh files read back by trimesh and pygltflib: axes, size, colours, material, and the rules of the glTF standard.

Mutations seen to fail: GLB permutation [0, 2, 1] (upright), `normalised` without the division (unit size), colours
of GLB left as sRGB or in 8 bits (linear light), no material (no metal), v not turned (texture), targets left out
(standard), writing under the final name (disk full).
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from PIL import Image

from threestudio_rf.core.files import temporary
from threestudio_rf.export.files import to_linear, write
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh
from threestudio_rf.export.texture import Atlas, textured

KINDS = {5120: np.int8, 5121: np.uint8, 5122: np.int16, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def loaded(path: Path) -> trimesh.Trimesh:
    found = trimesh.load(path, force="mesh", process=False)
    assert isinstance(found, trimesh.Trimesh)
    return found


def values(file: pygltflib.GLTF2, index: int) -> np.ndarray:
    """An accessor's values, by pygltflib's reading of the file."""
    accessor = file.accessors[index]
    view = file.bufferViews[accessor.bufferView]
    start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
    wide = SIZES[accessor.type]
    flat = np.frombuffer(file.binary_blob(), KINDS[accessor.componentType], accessor.count * wide, start)
    return flat.reshape(accessor.count, wide)


@pytest.fixture
def atlas(tower: Mesh) -> Atlas:
    return textured(tower, lambda points, *_: ((points + 1) / 2).flip(-1), 64)


@pytest.mark.parametrize(
    "kind, up, axis",
    [("glb", "y", 1), ("glb", "z", 1), ("obj", "y", 1), ("obj", "z", 2), ("ply", "y", 2), ("stl", "y", 2)],
)
def test_files_are_upright_of_unit_size_and_look_outwards(tower: Mesh, tmp_path: Path, kind: str, up: str, axis: int):
    (path,) = write(tower, tmp_path, formats=(kind,), up=up)
    assert path == tmp_path / f"model.{kind}"
    found = loaded(path)
    found.merge_vertices()
    assert found.is_watertight and found.volume > 0
    assert found.extents[axis] == pytest.approx(1) and found.extents.max() == pytest.approx(1)
    assert np.abs(found.bounds.sum(axis=0)).max() < 1e-5


@pytest.mark.parametrize("kind, axis", [("glb", 1), ("obj", 1), ("ply", 2)])
def test_red_is_above_and_blue_in_front_in_every_reader(tower: Mesh, tmp_path: Path, kind: str, axis: int):
    (path,) = write(tower, tmp_path, formats=(kind,))
    found = loaded(path)
    front = {1: 2, 2: 0}[axis]
    place = found.vertices
    if kind == "glb":
        colour = values(
            pygltflib.GLTF2().load(path), pygltflib.GLTF2().load(path).meshes[0].primitives[0].attributes.COLOR_0
        )
    else:
        colour = found.visual.vertex_colors
        assert np.abs(colour[:, :3] - (tower.colours.numpy() * 255).round()).max() == 0
    assert np.corrcoef(place[:, axis], colour[:, 0])[0, 1] > 0.95
    assert np.corrcoef(place[:, front], colour[:, 2])[0, 1] > 0.95


def test_a_scene_keeps_its_size_and_place(tower: Mesh, tmp_path: Path):
    moved = Mesh(tower.vertices + torch.tensor([1.0, 2.0, 3.0]), tower.faces, tower.colours)
    for kind, order in (("glb", [1, 2, 0]), ("obj", [1, 2, 0]), ("ply", [0, 1, 2])):
        (path,) = write(moved, tmp_path, formats=(kind,), scale="scene")
        assert np.allclose(loaded(path).vertices, moved.vertices.numpy()[:, order], atol=1e-6)


def test_colours_of_glb_are_linear_light_in_16_bits(tower: Mesh, tmp_path: Path):
    dark = Mesh(tower.vertices, tower.faces, tower.colours * 0.1)
    file = pygltflib.GLTF2().load(write(dark, tmp_path, formats=("glb",))[0])
    attributes = file.meshes[0].primitives[0].attributes
    accessor = file.accessors[attributes.COLOR_0]
    assert accessor.normalized and accessor.componentType == pygltflib.UNSIGNED_SHORT
    linear = values(file, attributes.COLOR_0)[:, :3] / 65535
    srgb = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(srgb - dark.colours.numpy()).max() < 0.5 / 255


def test_linear_light_has_the_anchors_of_the_srgb_standard():
    assert torch.allclose(to_linear(torch.tensor([0.0, 0.04045, 0.5, 1.0])), torch.tensor([0, 0.0031308, 0.2140411, 1]))


def test_a_glb_has_one_material_that_is_no_metal(tower: Mesh, atlas: Atlas, tmp_path: Path):
    for picture in (None, atlas):
        file = pygltflib.GLTF2().load(write(tower, tmp_path, formats=("glb",), atlas=picture)[0])
        (material,) = file.materials
        surface = material.pbrMetallicRoughness
        assert (surface.metallicFactor, surface.roughnessFactor, surface.baseColorFactor) == (0, 1, [1, 1, 1, 1])
        assert (surface.baseColorTexture is None) == (picture is None) and not material.extensions
        assert [part.material for part in file.meshes[0].primitives] == [0]
        assert (file.meshes[0].primitives[0].attributes.COLOR_0 is None) == (picture is not None)
    file = pygltflib.GLTF2().load(write(tower, tmp_path, formats=("glb",), material="unlit")[0])
    assert file.materials[0].extensions == {"KHR_materials_unlit": {}} and file.extensionsUsed == [
        "KHR_materials_unlit"
    ]


def test_a_glb_keeps_the_rules_of_the_standard(tower: Mesh, atlas: Atlas, tmp_path: Path):
    for picture in (None, atlas):
        (path,) = write(tower, tmp_path, formats=("glb",), atlas=picture)
        file, blob = pygltflib.GLTF2().load(path), path.read_bytes()
        assert blob[:4] == b"glTF" and int.from_bytes(blob[8:12], "little") == len(blob) and len(blob) % 4 == 0
        (part,) = file.meshes[0].primitives
        used = {name: index for name, index in vars(part.attributes).items() if index is not None}
        count = file.accessors[used["POSITION"]].count
        for name, index in used.items():
            accessor = file.accessors[index]
            view = file.bufferViews[accessor.bufferView]
            assert accessor.count == count and view.target == pygltflib.ARRAY_BUFFER
            assert (view.byteOffset or 0) % 4 == 0 and (view.byteOffset or 0) + view.byteLength <= len(
                file.binary_blob()
            )
            found = values(file, index)
            assert np.isfinite(found.astype(float)).all()
            if name == "POSITION":
                assert np.array_equal(found.min(axis=0), np.float32(accessor.min))
                assert np.array_equal(found.max(axis=0), np.float32(accessor.max))
            if name == "NORMAL":
                assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 5e-4
        index = values(file, part.indices)
        assert file.bufferViews[file.accessors[part.indices].bufferView].target == pygltflib.ELEMENT_ARRAY_BUFFER
        assert index.size == tower.faces.numel() and index.max() == count - 1
        for image in file.images:
            view = file.bufferViews[image.bufferView]
            data = file.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
            assert view.target is None and image.mimeType == "image/png"
            assert np.array_equal(np.array(Image.open(io.BytesIO(data)).convert("RGB")), atlas.picture)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_shows_the_colour_of_each_place(tower: Mesh, atlas: Atlas, tmp_path: Path, kind: str):
    files = write(tower, tmp_path, formats=(kind,), atlas=atlas, scale="scene")
    assert {path.name for path in files} == (
        {"model.glb"} if kind == "glb" else {"model.obj", "model.mtl", "model.png"}
    )
    found = loaded(files[0])
    material = found.visual.material
    image = np.array((material.baseColorTexture if kind == "glb" else material.image).convert("RGB")).astype(float)
    corners, uv = found.vertices[found.faces], found.visual.uv[found.faces]
    column, row = (uv.mean(axis=1) * [1, -1] + [0, 1]).T * len(image)
    shown = image[row.astype(int).clip(0, 63), column.astype(int).clip(0, 63)]
    place = corners.mean(axis=1)[:, [2, 0, 1]]
    expected = 255 * (place + 1)[:, ::-1] / 2
    assert np.abs(shown - expected).mean() < 3
    assert len(found.faces) == len(tower.faces) and found.volume == pytest.approx(tower.volume, rel=1e-5)


def test_an_obj_names_its_material_and_picture(tower: Mesh, atlas: Atlas, tmp_path: Path):
    write(tower, tmp_path, formats=("obj",), atlas=atlas, name="thing")
    text, material = (tmp_path / "thing.obj").read_text(), (tmp_path / "thing.mtl").read_text()
    assert "mtllib thing.mtl" in text and "usemtl thing" in text and "newmtl thing" in material
    assert "map_Kd thing.png" in material and "Ks 0.0" in material
    assert np.array_equal(np.array(Image.open(tmp_path / "thing.png")), atlas.picture)


def test_an_empty_or_broken_mesh_is_never_a_file(tower: Mesh, tmp_path: Path):
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3))
    broken = Mesh(tower.vertices * torch.nan, tower.faces, tower.colours)
    for mesh in (empty, broken):
        with pytest.raises(EmptyGeometryError):
            write(mesh, tmp_path)
    for wrong in ({"formats": ("fbx",)}, {"formats": ()}, {"up": "x"}, {"scale": "cm"}, {"material": "gold"}):
        with pytest.raises(ValueError, match=r"must be among|expected"):
            write(tower, tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_files_and_nothing_partial(tower: Mesh, tmp_path: Path):
    old = tmp_path / "model.obj"
    old.write_bytes(b"old")
    temporary(tmp_path / "model.ply").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write(tower, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.obj"] and old.read_bytes() == b"old"
