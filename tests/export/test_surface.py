"""What makes a field's surface an object that somebody keeps: smoothness, no specks, few triangles, colours as
rendered, a texture. The oracles are volume rendering of the same field and trimesh.

Mutations seen to fail: the level not matched to the volume (keeps its volume), no blur (dihedral), specks by voxels
only (specks), the colour taken on the surface and the cosines left out (as rendered), the texture's v upside down,
the gutter left black (gutter), the curvature left out (small ball) or of the wrong sign (ball and cylinder).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from threestudio_rf.export.mesh import Mesh, extract
from threestudio_rf.export.shell import shell_colours, shell_depth
from threestudio_rf.export.texture import colours_of, texture_size, textured
from threestudio_rf.export.tidy import decimated, smoothed, without_specks

NOISE = torch.rand(1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))


def noisy_ball(points: Tensor) -> Tensor:
    """A ball of radius 0.5 whose density is noisy, as that of a trained field."""
    noise = torch.nn.functional.grid_sample(NOISE, points[None, None, None] / 0.8, align_corners=True)
    height = 20 * torch.sigmoid((0.5 - points.norm(dim=-1)) / 0.02)
    return height * (0.3 + 1.4 * noise.view(-1))


def rim(points: Tensor) -> Tensor:
    """Dark outside and bright within: the surface of a field fades into a dark rim."""
    bright = torch.sigmoid((0.48 - points.norm(dim=-1)) / 0.02)
    return bright[:, None] * torch.tensor([0.9, 0.6, 0.3]) + 0.05


class NoisyBall:
    """The same as a `Surface`."""

    radius = 0.8
    density = staticmethod(noisy_ball)
    colour = staticmethod(rim)


def bend(mesh: Mesh) -> float:
    """Mean angle between neighbouring triangles in degrees."""
    made = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    return float(np.degrees(made.face_adjacency_angles).mean())


@pytest.fixture(scope="module")
def rough() -> Mesh:
    return extract(noisy_ball, rim, radius=0.8, resolution=48)


@pytest.fixture(scope="module")
def smooth() -> Mesh:
    return extract(noisy_ball, rim, radius=0.8, resolution=48, smooth=1.0)


def test_smoothing_takes_the_noise_off_and_keeps_the_volume(rough: Mesh, smooth: Mesh):
    assert bend(smooth) < 0.5 * bend(rough)
    assert smooth.volume == pytest.approx(rough.volume, rel=0.02)
    assert trimesh.Trimesh(smooth.vertices.numpy(), smooth.faces.numpy(), process=False).is_watertight


def test_smoothing_keeps_the_volume_of_what_is_thin():
    wire = np.zeros((24, 24, 24), dtype=np.float32)
    wire[10:14, 10:14, 4:20] = 10
    blurred, level = smoothed(wire, 5.0, 1.0)
    assert (blurred > level).sum() == (wire > 5).sum()
    same, unchanged = smoothed(wire, 5.0, 0.0)
    assert same is wire and unchanged == 5.0


def test_an_object_that_touches_the_box_is_closed_after_smoothing():
    mesh = extract(lambda p: 10.0 * (p[:, 0] > 0.1), rim, radius=0.5, resolution=20, threshold=5.0, smooth=2.0)
    assert trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False).is_watertight


def test_specks_and_inner_walls_go_whatever_they_touch():
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    speck = trimesh.creation.icosphere(subdivisions=1, radius=0.02)
    speck.apply_translation([0.6, 0, 0])
    hollow = trimesh.creation.icosphere(subdivisions=1, radius=0.3)
    hollow.invert()
    second = trimesh.creation.icosphere(subdivisions=1, radius=0.2)
    second.apply_translation([0, 1, 0])
    scene = trimesh.util.concatenate([ball, speck, hollow, second])
    vertices, faces = (torch.from_numpy(np.array(x)) for x in (scene.vertices, scene.faces))
    kept, triangles = without_specks(vertices, faces, 0.01)
    assert len(triangles) == len(ball.faces) + len(second.faces)
    assert len(kept) == len(ball.vertices) + len(second.vertices) and int(triangles.max()) == len(kept) - 1


def test_triangles_are_taken_away_without_holes_or_volume(smooth: Mesh):
    vertices, faces = decimated(smooth.vertices, smooth.faces, 1500)
    made = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)
    assert 1400 <= len(faces) <= 1500 and made.is_watertight
    assert made.volume == pytest.approx(smooth.volume, rel=0.01)
    assert decimated(smooth.vertices, smooth.faces, 0)[1] is smooth.faces


def wall(points: Tensor) -> Tensor:
    """Solid below z = 0, with a soft surface."""
    return 40 * torch.sigmoid(-points[:, 2] / 0.02)


def wall_rgb(points: Tensor) -> Tensor:
    return torch.sigmoid((-0.04 - points[:, 2]) / 0.02)[:, None] * torch.tensor([0.9, 0.6, 0.3]) + 0.05


def test_colours_are_those_that_pictures_of_the_field_have():
    cosine = ((torch.arange(200) + 0.5) / 200).sqrt()[:, None]
    directions = torch.cat(((1 - cosine**2).sqrt(), torch.zeros_like(cosine), -cosine), dim=1)
    along = torch.linspace(-1, 4, 5000)[:, None] / -directions[:, None, 2:]
    samples = along * directions[:, None]
    depth = wall(samples.view(-1, 3)).view(200, -1) * (along[:, 1] - along[:, 0])
    weight = torch.exp(depth - depth.cumsum(1)) * (1 - torch.exp(-depth))
    rendered = (weight[..., None] * wall_rgb(samples.view(-1, 3)).view(200, -1, 3)).sum(1).mean(0)
    points, normals = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
    baked = shell_colours(wall, wall_rgb, points, normals, torch.zeros(1), depth=shell_depth(20.0, 1.0))[0]
    assert torch.allclose(baked, rendered, rtol=0.05)
    assert (wall_rgb(points)[0] < 0.9 * rendered).all(), "the surface alone is too dark"


def test_colours_of_a_small_ball_are_those_of_rays_that_graze_it_too():
    radius, faint = 0.12, 12.0

    def ball(points: Tensor) -> Tensor:
        return faint * torch.sigmoid((radius - points.norm(dim=-1)) / 0.01)

    def rgb(points: Tensor) -> Tensor:
        return torch.sigmoid((radius - 0.04 - points.norm(dim=-1)) / 0.02)[:, None].expand(-1, 3) * 0.8 + 0.1

    aside = radius * ((torch.arange(200) + 0.5) / 200).sqrt()[:, None]  # as many rays for each part of the disk
    along = torch.linspace(-0.3, 0.3, 2000).expand(200, -1)
    samples = torch.stack((aside.expand_as(along), torch.zeros_like(along), along), dim=-1).view(-1, 3)
    depth = ball(samples).view(200, -1) * (0.6 / 1999)
    weight = torch.exp(depth - depth.cumsum(1)) * -torch.expm1(-depth)
    rendered = (weight * rgb(samples)[:, 0].view(200, -1)).sum() / weight.sum()
    place, up = torch.tensor([[0.0, 0.0, radius]]), torch.tensor([[0.0, 0.0, 1.0]])
    curved, flat = (
        shell_colours(ball, rgb, place, up, torch.tensor([k]), depth=radius)[0, 0] for k in (1 / radius, 0.0)
    )
    assert curved.item() == pytest.approx(rendered.item(), rel=0.03)
    assert flat > 1.05 * rendered, "grazing rays see the rim alone"


@pytest.mark.parametrize(("axes", "expected"), [(3, 4.0), (2, 2.0)])
def test_curvature_is_that_of_a_ball_and_of_a_cylinder(axes: int, expected: float):
    made = extract(lambda p: 0.25 - p[:, :axes].norm(dim=-1), rim, radius=0.5, resolution=33, threshold=0.0)
    middle = made.vertices[:, 2].abs() < 0.3
    assert made.curvature[middle].mean().item() == pytest.approx(expected, rel=0.1)
    hollow = Mesh(made.vertices, made.faces.flip(1), made.colours)
    assert hollow.curvature[middle].mean().item() == pytest.approx(-expected, rel=0.1)


def test_a_shell_without_density_has_the_colour_of_its_place():
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
    found = shell_colours(
        lambda p: torch.zeros(len(p)), lambda p: p.clamp(0, 1), points, points, points[:, 0], depth=0.2
    )
    assert (found - points).abs().max() < 0.02


def test_chunks_change_no_colour(smooth: Mesh):
    shape = (smooth.vertices, smooth.normals, smooth.curvature)
    colours = [
        shell_colours(noisy_ball, rim, *(x[:300] for x in shape), depth=0.2, chunk=chunk) for chunk in (70, 1 << 18)
    ]
    assert torch.allclose(*colours, atol=1e-6)


def test_normals_are_those_of_a_ball(smooth: Mesh):
    outwards = torch.nn.functional.normalize(smooth.vertices, dim=-1)
    assert (smooth.normals * outwards).sum(-1).min() > 0.95
    lone = Mesh(torch.eye(3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(3, 3))
    assert lone.normals.tolist() == [[0, 0, 1]] * 3


def test_a_texture_holds_the_field_s_colours_and_no_seam_shows_what_is_between(smooth: Mesh):
    smooth = Mesh(*decimated(smooth.vertices, smooth.faces, 1000), smooth.colours, smooth.level)
    atlas = textured(smooth, colours_of(NoisyBall(), smooth), 128)
    assert atlas.picture.shape == (128, 128, 3) and atlas.picture.dtype == np.uint8
    assert torch.equal(atlas.origin[atlas.faces], smooth.faces)
    assert float(atlas.uv.min()) >= 0 and float(atlas.uv.max()) <= 1
    mean = 255 * smooth.colours.mean(0).numpy()
    assert np.abs(atlas.picture.reshape(-1, 3).mean(0) - mean).max() < 8
    assert atlas.picture[..., 0].min() > 0.5 * mean[0], "nothing is left black"


def test_a_texture_has_a_possible_size(smooth: Mesh):
    for size in (0, 15, 4097, 100_000):
        with pytest.raises(ValueError, match=f"16 to 4096 texels a side, got {size}"):
            textured(smooth, lambda points, *_: points, size)
    area = trimesh.Trimesh(smooth.vertices.numpy(), smooth.faces.numpy(), process=False).area
    for cell in (0.01, 0.05):
        assert texture_size(smooth, cell) == 2 ** round(math.log2(3 * math.sqrt(area / 0.75) / cell))
    assert texture_size(smooth, 10.0) == 64 and texture_size(smooth, 1e-6) == 2048
