"""The picture as a scene: its size, its start against the reference's shrunk latents, its bounds and their gradients,
which particles a step sees, learning.

Seen to fail: std 0.5, or a uniform start without its factor sqrt 3 -> the spread; clip as a clamp, clip in the range of
latents for pixels, tanh of latents for pixels -> a bound holds; values that clip never puts back -> clip puts back; the
turn not set by `update`, the same particles in every rendering of a step, `per_step` without a generator -> in turn;
random particles without replacement -> at random; the generator ignored -> decides the start.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.scenes.camera import orbit
from threestudio_rf.scenes.image import BOUNDS, ImageScene

CAMERA = orbit(5, elevation=10.0, distance=2.0, fovy=45.0, height=7, width=7)
PIXELS = (2, 3, 6, 8)


def scene(kind="latent", shape=(2, 4, 6, 8), seed=0, **options):
    return ImageScene(shape, kind, generator=generator(seed, 0, "image"), **options)


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_a_latent_starts_with_the_spread_of_the_references_latents_after_shrinking(init):
    large = 2 * torch.rand(8, 4, 512, 512, generator=generator(0, 0, "reference")) - 1
    shrunk = F.interpolate(large, (64, 64), mode="bilinear", align_corners=False)
    ours = scene(shape=(8, 4, 64, 64), init=init).values
    assert shrunk.std() == pytest.approx(0.289, abs=0.002)
    assert ours.std().item() == pytest.approx(shrunk.std().item(), abs=0.003)
    assert abs(ours.mean().item()) < 0.005
    assert (ours.abs().max() < 0.501) == (init == "uniform")


def test_every_camera_sees_the_same_pictures_at_their_true_size():
    for kind, shape in (("latent", (2, 4, 6, 8)), ("pixels", PIXELS)):
        made = scene(kind, shape)
        seen = made.render(CAMERA, generator(1, 0, "render"), normals=True)
        assert seen.rgb.shape == shape and seen.opacity.shape == (2, 1, 6, 8) and seen.opacity.eq(1).all()
        again = made.render(CAMERA.select(slice(0, 1)))
        assert torch.equal(seen.rgb, again.rgb) and seen.normal is None
    assert [p.numel() for p in scene().parameters()] == [2 * 4 * 6 * 8]


def test_a_latent_is_shown_as_it_is_and_pixels_are_colours_with_a_gradient_everywhere():
    wild = scene(std=8.0)
    assert torch.equal(wild.render(CAMERA).rgb, wild.values) and wild.values.abs().max() > 10
    picture = scene("pixels", PIXELS, std=3.0)
    rgb = picture.render(CAMERA).rgb
    assert rgb.min() > 0 and rgb.max() < 1
    rgb.sum().backward()
    assert picture.values.grad.min() > 0


@pytest.mark.parametrize(("kind", "bound"), [(kind, bound) for kind, bounds in BOUNDS.items() for bound in bounds])
def test_a_bound_holds_the_values_in_the_range_of_their_kind_and_lets_the_gradient_through(kind, bound):
    made = scene(kind, PIXELS, std=2.0, bound=bound)
    rgb = made.render(CAMERA).rgb
    rgb.sum().backward()
    assert (made.values.grad > 0).all()
    if bound == "none":
        assert rgb.abs().max() > 2
        return
    low = 0.0 if kind == "pixels" else -1.0
    assert low <= rgb.min() < low + 0.1 and 0.9 < rgb.max() <= 1
    assert rgb.mean().item() == pytest.approx((low + 1) / 2, abs=0.1)


def test_clip_puts_the_values_back_before_each_step_and_leaves_those_inside():
    made = scene("pixels", PIXELS, std=2.0, bound="clip")
    inside = (made.values > 0) & (made.values < 1)
    before = made.values.detach().clone()
    made.update(0, generator(0, 0, "update"))
    assert torch.equal(made.values, before.clamp(0, 1)) and torch.equal(made.values[inside], before[inside])
    free = scene(std=2.0)
    free.update(0, generator(0, 0, "update"))
    assert free.values.abs().max() > 1


def numbered(order="turn", per_step=3):
    """Seven particles, each filled with its number."""
    made = scene(shape=(7, 1, 2, 2), per_step=per_step, order=order)
    made.values.data = torch.arange(7.0)[:, None, None, None].expand(7, 1, 2, 2).clone()
    return made


def shown(made, step, draw=0):
    return made.render(CAMERA, generator(draw, step, "render")).rgb[:, 0, 0, 0].tolist()


def test_particles_come_in_turn_and_a_step_that_is_repeated_sees_the_same_ones():
    made = numbered()
    for step, wanted in ((0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6, 0, 1]), (1, [3, 4, 5])):
        made.update(step, generator(0, step, "update"))
        assert shown(made, step) == wanted
    assert shown(made, 1) == [6, 0, 1]
    assert made.render(CAMERA).rgb[:, 0, 0, 0].tolist() == list(range(7))
    assert shown(numbered(per_step=0), 5) == list(range(7))


def test_random_particles_are_drawn_with_replacement_by_the_given_generator():
    made = numbered("random")
    draws = [shown(made, step) for step in range(200)]
    assert draws == [shown(made, step) for step in range(200)] != [shown(made, step, draw=1) for step in range(200)]
    repeated = sum(len(set(draw)) < 3 for draw in draws) / 200
    assert repeated == pytest.approx(1 - 6 / 7 * 5 / 7, abs=0.1)
    counts = torch.tensor(draws).long().flatten().bincount(minlength=7)
    assert counts.min() > 60 and counts.sum() == 600


def test_only_the_particles_of_a_step_get_a_gradient():
    made = numbered()
    made.update(1, generator(0, 1, "update"))
    made.render(CAMERA, generator(0, 1, "render")).rgb.sum().backward()
    assert made.values.grad.flatten(1).sum(1).tolist() == [0, 0, 0, 4, 4, 4, 0]


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
            Model(predict, "flow", rectified_flow),
            torch.full((2,), 0.98 - 0.9 * step / 80),
            method=Method(scale=3.0),
            generator=generator(0, step, "noise"),
        ).loss.backward()
        optimiser.step()
    wanted = torch.tensor([-1.0, 1.0])[:, None, None, None]
    assert (made.values - wanted).abs().max() < 0.15


@pytest.mark.parametrize(
    ("shape", "kind", "options"),
    [
        ((2, 4, 6, 8), "pixels", {}),
        ((2, 4, 6, 8), "voxels", {}),
        ((2, 4, 0, 8), "latent", {}),
        ((2, 4, 6, 8), "latent", {"std": -1.0}),
        ((2, 4, 6, 8), "latent", {"bound": "sigmoid"}),
        (PIXELS, "pixels", {"bound": "none"}),
        ((2, 4, 6, 8), "latent", {"per_step": 3}),
        ((2, 4, 6, 8), "latent", {"order": "sorted"}),
        ((2, 4, 6, 8), "latent", {"init": "zero"}),
    ],
)
def test_what_cannot_be_a_picture_is_refused(shape, kind, options):
    with pytest.raises(ValueError, match="expected"):
        scene(kind, shape, **options)
