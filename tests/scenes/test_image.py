"""The picture as a scene: its size, its start against the reference's shrunk latents, gradients, learning.

Seen to fail: std 0.5; the latent through a sigmoid as well; the gradient cut by a clamp instead of the sigmoid; the
opacity of the values' own channels; the generator ignored.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.scenes.camera import orbit
from threestudio_rf.scenes.image import ImageScene

CAMERA = orbit(5, elevation=10.0, distance=2.0, fovy=45.0, height=7, width=7)


def scene(kind="latent", shape=(2, 4, 6, 8), seed=0, **options):
    return ImageScene(shape, kind, generator=generator(seed, 0, "image"), **options)


def test_a_latent_starts_with_the_spread_of_the_references_latents_after_shrinking():
    large = 2 * torch.rand(8, 4, 512, 512, generator=generator(0, 0, "reference")) - 1
    shrunk = F.interpolate(large, (64, 64), mode="bilinear", align_corners=False)
    ours = scene(shape=(8, 4, 64, 64)).values
    assert shrunk.std() == pytest.approx(0.289, abs=0.002)
    assert ours.std().item() == pytest.approx(shrunk.std().item(), abs=0.003)
    assert abs(ours.mean().item()) < 0.005


def test_every_camera_sees_the_same_pictures_at_their_true_size():
    for kind, shape in (("latent", (2, 4, 6, 8)), ("pixels", (2, 3, 6, 8))):
        made = scene(kind, shape)
        seen = made.render(CAMERA, generator(1, 0, "render"), normals=True)
        assert seen.rgb.shape == shape and seen.opacity.shape == (2, 1, 6, 8) and seen.opacity.eq(1).all()
        again = made.render(CAMERA.select(slice(0, 1)))
        assert torch.equal(seen.rgb, again.rgb) and seen.normal is None
    assert [p.numel() for p in scene().parameters()] == [2 * 4 * 6 * 8]


def test_a_latent_is_shown_as_it_is_and_pixels_are_colours_with_a_gradient_everywhere():
    wild = scene(std=8.0)
    assert torch.equal(wild.render(CAMERA).rgb, wild.values) and wild.values.abs().max() > 10
    picture = scene("pixels", (2, 3, 6, 8), std=3.0)
    rgb = picture.render(CAMERA).rgb
    assert rgb.min() > 0 and rgb.max() < 1
    rgb.sum().backward()
    assert picture.values.grad.min() > 0


def test_the_generator_decides_the_start():
    assert torch.equal(scene().values, scene().values)
    assert not torch.equal(scene().values, scene(seed=1).values)


def test_latents_are_distilled_without_an_encoder_and_reach_the_mode_of_their_prompt():
    means = torch.stack([torch.full((4, 6, 8), value) for value in (-1.0, 1.0)])
    prior = GaussianPrior(means, 0.05, names=["red", "blue"])
    predict = bind(prior, {"cond": prior.embed(["red", "blue"]), "uncond": prior.embed([""])})
    made = scene()
    optimiser = torch.optim.Adam(made.parameters(), lr=0.05)
    for step in range(80):
        optimiser.zero_grad()
        distill(
            made.render(CAMERA).rgb,
            predict,
            torch.full((2,), 0.98 - 0.9 * step / 80),
            prior_kind="flow",
            schedule=rectified_flow,
            method=Method(scale=3.0),
            generator=generator(0, step, "noise"),
        ).loss.backward()
        optimiser.step()
    wanted = torch.tensor([-1.0, 1.0])[:, None, None, None]
    assert (made.values - wanted).abs().max() < 0.15


def test_what_cannot_be_a_picture_is_refused():
    for shape, kind, options in (
        ((2, 4, 6, 8), "pixels", {}),
        ((2, 4, 6, 8), "voxels", {}),
        ((2, 4, 0, 8), "latent", {}),
        ((2, 4, 6, 8), "latent", {"std": -1.0}),
    ):
        with pytest.raises(ValueError, match="expected"):
            scene(kind, shape, **options)
