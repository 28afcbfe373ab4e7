"""The loop on the closed-form prior and a scene of one colour: what it learns, repeats, counts, skips and refuses.

Seen to fail: the optimiser stepping on skipped steps; the counter of skipped steps, or of empty ones, never set back;
the noise of a rendering drawn from one generator that lives across steps (resume); `predict.calls` counting batches; a
factor of 0 computed all the same; `counts[stage]` without its limit. With Perp-Neg: the view's own prompt instead of
the mixture; the negatives taken by the camera's view word; the threshold of "overhead" left at its default; the
weights of the two negatives exchanged. With the rest: latents encoded; the gradient of a skipped step added, the sum
not divided, or never emptied; a run that goes on in the middle of a window; the twin learning with the same numbers at
every step, twice what it learnt before a stop, or from latents with their graph; half of the pose; `progress` not
passed on; the prompts' norms left out; `extra` overruled by the negative prompt; distillation without its
factor; the gradient's norm read by itself; a time of another device looked at.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from looks import LIMITS, LOOKS, TIMES
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.views import BACK, FRONT, SIDE, Curves
from threestudio_rf.scenes import regularize
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.trainer.lift import DivergedError, LiftSettings, LiftState, encoded, lift, seen_from
from threestudio_rf.trainer.optim import make_optimiser, set_rates
from threestudio_rf.trainer.ramp import Constant, Ramp

RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)


class Flat(Scene):
    """A picture of one learned colour with learned opacity, and a little noise when a generator is given."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(3))
        self.solid = nn.Parameter(torch.ones(()))

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        shape = (len(camera), 3, camera.height, camera.width)
        noise = 0.0 if generator is None else 0.01 * torch.randn(shape, generator=generator)
        rgb = (self.colour.sigmoid()[None, :, None, None] + noise).expand(shape)
        orientation = self.solid.square().expand(shape)[:, :1] if normals else None
        return Rendering(rgb, self.solid.expand(shape)[:, :1], orientation=orientation)


class Broken(GaussianPrior):
    """Says NaN at the calls of `bad`, or at every call when there are none."""

    bad: tuple[int, ...] = ()
    call = -1

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.call += 1
        good = super().predict(x_t, t, condition)
        return good * float("nan") if not self.bad or self.call in self.bad else good


def prior(kind: Any = GaussianPrior) -> Any:
    means = 2 * torch.tensor([RED, BLUE]) - 1
    return kind(means[:, :, None, None].expand(-1, -1, 4, 4), 0.1, names=["red", "blue"])


SETTINGS = LiftSettings(
    steps=150,
    method=Method(scale=1.0),
    rates={name: Constant(0.1) for name in ("encoding", "networks", "background")},
    views=LOOKS,
    times=TIMES,
    **LIMITS,
)


def states(scene: Scene, settings: LiftSettings, source: GaussianPrior | None = None, **given: Any) -> list[LiftState]:
    source = source or prior()
    optimiser = make_optimiser(scene, settings.rates, weight_decay=0.0)
    conditions = source.embed(["red"] * 4)
    run = lift(scene, source, conditions, negative=source.embed([""]), optimiser=optimiser, settings=settings, **given)
    return list(run)


def test_rfds_brings_the_scene_to_the_colour_of_its_prompt() -> None:
    scene = Flat()
    states(scene, SETTINGS)
    assert torch.allclose(scene.colour.sigmoid(), torch.tensor(RED), atol=0.05)


class Reads(TorchDispatchMode):
    """Counts how often the program waits for numbers that are the device's on a GPU: `.item()`, `bool(...)`, the places
    of a mask. Times and the counters of AdamW are the CPU's own."""

    WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
    OF_HOST = frozenset({"check_times", "_check_time", "_get_value"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.WAITS:
            self.count += not self.OF_HOST & {frame.name for frame in traceback.extract_stack()}
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_its_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each wait stops the queue. Marching, which must know how many samples there are, waits beside."""
    lists = []
    tolist = Tensor.tolist  # reads all figures at once, and is not dispatched
    monkeypatch.setattr(Tensor, "tolist", lambda values: lists.append(len(values)) or tolist(values))
    for names in (["sparsity"], ["sparsity", "opaqueness", "total_variation"]):
        settings = replace(SETTINGS, steps=1, lambdas={name: Constant(0.1) for name in names})
        lists.clear()
        with Reads() as reads:
            (state,) = states(Flat(), settings)
        assert {*names, "grad_norm"} <= set(state.metrics)
        assert (reads.count, len(lists)) == (0, 1)
    for schedule in (rectified_flow, DiscreteVP(betas("linear", 10))):
        schedule(torch.zeros(2, device="meta"))  # no number of another device is looked at
    with Reads() as reads:
        float(torch.ones(()))
    assert reads.count == 1


def test_a_run_that_goes_on_from_its_state_takes_the_same_steps() -> None:
    whole, part = Flat(), Flat()
    settings = replace(SETTINGS, steps=12, method=Method(scale=5.0, noise="rev"))
    states(whole, settings)
    optimiser = make_optimiser(part, settings.rates, weight_decay=0.0)
    source = prior()
    conditions, negative = source.embed(["red"] * 4), source.embed([""])
    for state in lift(part, source, conditions, negative=negative, optimiser=optimiser, settings=settings):
        if state.step == 4:
            break
    again, kept = Flat(), copy.deepcopy(optimiser.state_dict())
    again.load_state_dict(part.state_dict())
    second = make_optimiser(again, settings.rates, weight_decay=0.0)
    second.load_state_dict(kept)
    rest = lift(again, source, conditions, negative=negative, optimiser=second, settings=settings, first_step=5)
    assert [state.step for state in rest] == list(range(5, 12))
    assert torch.equal(whole.colour, again.colour)


@pytest.mark.parametrize(
    ("method", "calls"), [(Method(scale=1.0), 1), (Method(scale=5.0), 2), (Method(scale=5.0, noise="rev"), 3)]
)
def test_network_calls_are_counted_per_sample(method: Method, calls: int) -> None:
    assert states(Flat(), replace(SETTINGS, steps=1, method=method))[0].metrics["network_calls"] == calls


@pytest.mark.parametrize(("noise", "calls"), [("random", 4), ("rev", 5)])
def test_perp_neg_asks_for_two_more_predictions_per_sample(noise: str, calls: int) -> None:
    settings = replace(SETTINGS, steps=2, method=Method(scale=5.0, noise=noise), perp_neg=Curves())
    views = replace(SETTINGS.views, elevation=(0.0, 40.0))
    for state in states(Flat(), replace(settings, views=views)):
        assert state.metrics["network_calls"] == calls and not state.metrics["skipped"]
    above = replace(SETTINGS.views, elevation=(65.0, 80.0))
    assert states(Flat(), replace(settings, views=above))[0].metrics["network_calls"] == calls - 2


class Labelled(GaussianPrior):
    """Predicts the first number of its condition, so that a prediction tells which prompt it is of."""

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return condition.tensors["word"][:, :1, None, None].expand_as(x_t)


def spoken(camera: Camera, negative: list[float], **given: Any) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """The word that each camera hears in every role, the view prompts being 1, 10, 100 and 1000, and the weights."""
    settings = replace(SETTINGS, **given)
    words = [Condition({"word": torch.tensor(row)[:, None]}) for row in ([1.0, 10.0, 100.0, 1000.0], negative)]
    seen, weights = seen_from(*words, camera=camera, settings=settings)
    x, t = torch.zeros(len(camera), 3, 4, 4), torch.full((len(camera),), 0.5)
    heard = bind(prior(Labelled), seen)(x, t, ["cond", "uncond", *weights])
    return {role: p[:, 0, 0, 0].tolist() for role, p in heard.items()}, weights


def cameras(azimuth: list[float], elevation: list[float]) -> Camera:
    turns = torch.tensor(azimuth)
    return Camera(turns, torch.tensor(elevation), 2 + 0 * turns, 45 + 0 * turns, 8, 8)


def test_every_camera_hears_its_own_mixture_and_is_pushed_from_front_and_side() -> None:
    camera = cameras([0.0, 45.0, -135.0, 180.0, 20.0], [0.0, 0.0, 10.0, 0.0, 55.0])
    heard, weights = spoken(camera, [7.0], perp_neg=Curves(), views=replace(SETTINGS.views, overhead=50.0))
    assert heard["cond"] == pytest.approx([10.0, 5.5, 50.5, 100.0, 1000.0])
    assert heard["uncond"] == [7.0] * 5
    first, second = weights
    assert heard[first] == [10.0] * 5 and heard[second] == [1.0] * 5
    assert weights[first].tolist() == pytest.approx([-1.2e-4, -0.689, -1.746, -1.967, 0.0], abs=1e-3)
    assert weights[second].tolist() == pytest.approx([-1.574, -0.689, -0.173, -0.394, 0.0], abs=1e-3)
    plain, none = spoken(camera, [7.0])
    assert plain == {"cond": [10.0, 1.0, 1.0, 100.0, 10.0], "uncond": [7.0] * 5} and none == {}


@pytest.mark.parametrize("perp_neg", [None, Curves()])
def test_a_negative_prompt_per_view_is_that_of_the_cameras_view(perp_neg: Curves | None) -> None:
    camera = cameras([0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 70.0])
    heard, _ = spoken(camera, [2.0, 3.0, 4.0, 5.0], perp_neg=perp_neg)
    assert heard["uncond"] == [3.0, 2.0, 4.0, 5.0]
    assert (SIDE, FRONT, BACK) == (0, 1, 2)


def test_a_step_without_a_finite_gradient_is_left_out_and_counted() -> None:
    scene, source = Flat(), prior(Broken)
    before = scene.colour.detach().clone()
    result = states(scene, replace(SETTINGS, steps=3), source)
    assert [state.metrics["skipped"] for state in result] == [1, 1, 1]
    assert torch.equal(scene.colour, before)


def test_a_finite_loss_with_a_gradient_that_is_not_is_left_out_too() -> None:
    class Edge(Flat):
        """Half grey, by a root whose derivative at 0 is not finite."""

        def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
            seen = super().render(camera, generator, normals=normals)
            return seen._replace(rgb=0.5 + self.colour.square().sum().sqrt() * seen.rgb)

    scene = Edge()
    result = states(scene, replace(SETTINGS, steps=2))
    assert [(state.metrics["skipped"], state.metrics["loss"] < 10) for state in result] == [(1, True)] * 2
    assert torch.equal(scene.colour, torch.zeros(3)) and torch.equal(scene.solid, torch.ones(()))


def test_too_many_such_steps_in_a_row_stop_the_run_with_the_figures() -> None:
    with pytest.raises(DivergedError, match=r"step 4.*5 steps in a row.*t 0.*cond modes 1\.732, uncond modes 1\.41"):
        states(Flat(), replace(SETTINGS, skip_limit=5), prior(Broken))


def test_bad_steps_that_are_not_in_a_row_move_nothing_and_do_not_stop_a_run() -> None:
    source, scene = prior(Broken), Flat()
    source.bad = (2, 4)
    colours = []
    optimiser = make_optimiser(scene, SETTINGS.rates, weight_decay=0.0)
    settings = replace(SETTINGS, steps=6, skip_limit=2)
    conditions, negative = source.embed(["red"] * 4), source.embed([""])
    for state in lift(scene, source, conditions, negative=negative, optimiser=optimiser, settings=settings):
        assert state.metrics["skipped"] == (state.step in source.bad)
        colours.append(scene.colour.detach().clone())
    moved = [not torch.equal(a, b) for a, b in pairwise(colours)]
    assert moved == [True, False, True, False, True]


def test_a_scene_that_stays_empty_is_warned_about_once() -> None:
    scene = Flat()
    nn.init.zeros_(scene.solid)
    with pytest.warns(UserWarning, match="empty") as caught:
        states(scene, replace(SETTINGS, steps=20, empty_limit=5))
    assert len([w for w in caught if "empty" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        states(Flat(), replace(SETTINGS, steps=20, empty_limit=5))


def test_a_regulariser_with_factor_zero_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Rendering) -> Tensor:
        raise AssertionError("computed")

    monkeypatch.setitem(regularize.REGULARIZERS, "sparsity", fail)
    states(Flat(), replace(SETTINGS, steps=2, lambdas={"sparsity": Constant(0.0)}))
    with pytest.raises(AssertionError, match="computed"):
        states(Flat(), replace(SETTINGS, steps=2, lambdas={"sparsity": Ramp(0.0, 1.0, 0, 1)}))


def test_the_distillation_loss_counts_times_its_factor_over_steps() -> None:
    result = states(Flat(), replace(SETTINGS, steps=3, lambdas={"distill": Ramp(1.0, 3.0, 0, 2)}))
    found = [state.metrics["loss"] / state.metrics["distill"] for state in result]
    assert found == pytest.approx([1.0, 2.0, 3.0])


def test_normals_are_rendered_only_while_the_orientation_loss_needs_them() -> None:
    result = states(Flat(), replace(SETTINGS, steps=4, lambdas={"orientation": Ramp(0.0, 1.0, 1, 2)}))
    assert [state.rendering.orientation is None for state in result] == [True, True, False, False]
    assert "orientation" in result[-1].metrics


def test_milestones_change_size_and_number_of_views() -> None:
    views = replace(LOOKS, sizes=[8, 16, 16], milestones=[2, 4], counts=[3, 2, 1])
    result = states(Flat(), replace(SETTINGS, steps=5, views=views))
    assert [tuple(state.rendering.rgb.shape) for state in result] == [(3, 3, 8, 8)] * 2 + [(2, 3, 16, 16)] * 2 + [
        (1, 3, 16, 16)
    ]
    one = states(Flat(), replace(SETTINGS, steps=3, views=replace(views, counts=[2], sizes=[8])))
    assert len(one[-1].camera) == 2 and one[-1].camera.height == 8


def test_times_stay_in_their_moving_window() -> None:
    times = replace(TIMES, t_min=Constant(0.1), t_max=Ramp(0.9, 0.3, 0, 10))
    assert max(float(times.draw(50, 10, 20, seed).max()) for seed in range(5)) <= 0.3
    assert max(float(times.draw(50, 0, 20, seed).max()) for seed in range(5)) > 0.8


class Grouped(Flat):
    """The colour and the opacity apart, and what is called after each step of the optimiser."""

    named: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, bool, float]] = []

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"networks": [self.colour], "background": [self.solid]} if self.named is None else self.named(self)

    def after_step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        assert self.colour.grad is not None
        self.calls.append((step, self.colour in optimiser.state, float(self.colour.grad.norm())))
        with torch.no_grad():
            self.colour.clamp_(-0.25, 0.25)


def test_parameters_fall_into_their_groups_and_follow_their_rates() -> None:
    optimiser = make_optimiser(Flat(), SETTINGS.rates)
    set_rates(optimiser, {"networks": Ramp(1.0, 0.0, 0, 10)}, 5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5]
    optimiser = make_optimiser(Grouped(), {"networks": Constant(0.1), "background": Constant(0.2)})
    assert [(group["name"], group["lr"]) for group in optimiser.param_groups] == [
        ("networks", 0.1),
        ("background", 0.2),
    ]


def test_a_scene_without_parameters_is_refused() -> None:
    class Empty(Flat):
        def groups(self) -> dict[str, list[nn.Parameter]]:
            return {"networks": []}

    with pytest.raises(ValueError, match="no parameters"):
        make_optimiser(Empty(), SETTINGS.rates)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (lambda scene: {"networks": [scene.colour]}, "got 1 parameters, expected its 2"),
        (lambda scene: {"networks": [scene.colour, scene.solid], "image": [scene.solid]}, "got 3 parameters"),
        (lambda scene: {"points": [scene.colour, scene.solid]}, "got points, expected some of networks, image"),
    ],
)
def test_groups_are_the_parameters_each_once_with_a_rate(named: Any, message: str) -> None:
    scene = Grouped()
    scene.named = named
    with pytest.raises(ValueError, match=message):
        make_optimiser(scene, {"networks": Constant(0.1), "image": Constant(0.1)})


def test_a_scene_is_told_of_each_step_of_the_optimiser_with_its_gradient() -> None:
    scene = Grouped()
    found = states(scene, replace(SETTINGS, steps=6, accumulate=2))
    assert [(step, known) for step, known, _ in scene.calls] == [(1, True), (3, True), (5, True)]
    assert all(norm > 0 for *_, norm in scene.calls)
    assert float(scene.colour.detach().abs().max()) <= 0.25 and len(found) == 6
    skipped = Grouped()
    states(skipped, replace(SETTINGS, steps=3), prior(Broken))
    assert skipped.calls == []


def test_gradients_are_clipped_to_the_given_norm() -> None:
    free, bound = Flat(), Flat()
    rates = {"networks": Constant(0.1)}
    states(free, replace(SETTINGS, steps=1, rates=rates))
    for clip, scene in ((0.0, free), (1e-9, bound)):
        optimiser = torch.optim.SGD([{"name": "networks", "params": list(scene.parameters()), "lr": 0.1}])
        source = prior()
        before = scene.colour.detach().clone()
        settings = replace(SETTINGS, steps=1, clip=clip)
        list(
            lift(
                scene,
                source,
                source.embed(["red"] * 4),
                negative=source.embed([""]),
                optimiser=optimiser,
                settings=settings,
            )
        )
        moved = (scene.colour - before).norm().item()
        assert moved <= 1.01e-10 if clip else moved > 1e-6


class Pictures(Scene):
    """Latents of two particles as they are, whatever the camera."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4).clone())

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        return Rendering(self.values, torch.ones_like(self.values[:, :1]))


IMAGE = replace(SETTINGS, latent=True, rates={"image": Constant(0.1), "networks": Constant(0.1)})


def pictured(scene: Scene, settings: LiftSettings, source: Any = None, **given: Any) -> list[LiftState]:
    """A run with one prompt for every camera."""
    source = source or prior()
    optimiser = make_optimiser(scene, settings.rates, weight_decay=0.0)
    conditions, negative = source.embed(["red"]), source.embed([""])
    return list(lift(scene, source, conditions, negative=negative, optimiser=optimiser, settings=settings, **given))


def test_latents_are_distilled_as_they_are_in_the_batch_that_the_scene_decides() -> None:
    class NoEncoder(GaussianPrior):
        def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
            raise AssertionError("encoded")

    scene = Pictures()
    found = pictured(scene, replace(IMAGE, steps=150), prior(NoEncoder))
    assert found[0].x0_hat.shape == (2, 3, 4, 4) and len(found[0].camera) == 3
    wanted = (2 * torch.tensor(RED) - 1)[:, None, None].expand(3, 4, 4)
    assert (scene.values - wanted).abs().max() < 0.5
    with pytest.raises(AssertionError, match="encoded"):
        pictured(Pictures(), replace(IMAGE, steps=1, latent=False), prior(NoEncoder))


class Plain:
    """A prior whose latents are the picture."""

    def encode(self, image: Tensor) -> Tensor:
        return image


def test_a_rendering_is_made_larger_as_threestudio_does_and_smaller_without_aliasing() -> None:
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, encode_size=0)
    assert torch.equal(encoded(picture, Plain(), settings), picture)  # type: ignore[arg-type]
    larger = encoded(picture, Plain(), replace(settings, encode_size=16))  # type: ignore[arg-type]
    # halfway between pixel centres: three quarters of the nearer one, one quarter of the other, in rows and columns
    rows = 0.75 * picture[..., 3, :] + 0.25 * picture[..., 4, :]
    assert torch.allclose(larger[..., 7, 7], 0.75 * rows[..., 3] + 0.25 * rows[..., 4], atol=1e-6)
    smaller = encoded(picture, Plain(), replace(settings, encode_size=2))  # type: ignore[arg-type]
    centres, places = torch.tensor([2.0, 6.0])[:, None], torch.arange(8) + 0.5
    tent = (1 - (places - centres).abs() / 4).clamp(min=0)  # a tent as wide as the scale: every pixel counts
    tent = tent / tent.sum(1, keepdim=True)
    assert torch.allclose(smaller, tent @ picture @ tent.t(), atol=1e-6)


def test_one_prompt_serves_all_cameras_and_perp_neg_needs_one_per_view() -> None:
    camera = cameras([0.0, 90.0, 180.0], [0.0, 0.0, 80.0])
    word, nothing = (Condition({"word": torch.tensor([[value]])}) for value in (4.0, 0.0))
    seen, weights = seen_from(word, nothing, camera=camera, settings=SETTINGS)
    heard = bind(prior(Labelled), seen)(torch.zeros(5, 3, 4, 4), torch.full((5,), 0.5), ["cond", "uncond"])
    assert heard["cond"][:, 0, 0, 0].tolist() == [4.0] * 5 and weights == {}
    with pytest.raises(ValueError, match="got 1, expected 4 view prompts"):
        seen_from(word, nothing, camera=camera, settings=replace(SETTINGS, perp_neg=Curves()))


def test_further_roles_are_those_of_the_cameras_view_and_may_replace_uncond() -> None:
    camera = cameras([0.0, 90.0], [0.0, 0.0])
    rows = {"cond": [1.0, 10.0, 100.0, 1000.0], "target": [2.0, 20.0, 200.0, 2000.0], "uncond": [5.0], "old": [7.0]}
    told = {role: Condition({"word": torch.tensor(row)[:, None]}) for role, row in rows.items()}
    extra = {role: told[role] for role in ("target", "uncond")}
    seen, _ = seen_from(told["cond"], told["old"], camera=camera, settings=SETTINGS, extra=extra)
    heard = bind(prior(Labelled), seen)(torch.zeros(2, 3, 4, 4), torch.full((2,), 0.5), ["cond", "target", "uncond"])
    assert {role: p[:, 0, 0, 0].tolist() for role, p in heard.items()} == {
        "cond": [10.0, 1.0],
        "target": [20.0, 2.0],
        "uncond": [5.0, 5.0],
    }


def test_a_method_changes_its_stage_at_its_share_of_the_run() -> None:
    method = Method(scale=5.0, stage_two=0.5, stage_two_noise="push_back", invert_steps=3, invert_scale=1.0)
    calls = [state.metrics["network_calls"] for state in pictured(Pictures(), replace(IMAGE, steps=5, method=method))]
    assert calls == [2, 2, 5, 5, 5]


class Sgd:
    """Gradient steps of a scene by the trainer's own loop, under plain SGD."""

    def __init__(self, settings: LiftSettings, source: Any = None, first_step: int = 0) -> None:
        self.scene, source = Pictures(), source or prior()
        self.moves: list[Tensor] = []
        groups = [{"name": "networks", "params": [self.scene.values], "lr": 0.1}]
        optimiser = torch.optim.SGD(groups)
        before = self.scene.values.detach().clone()
        for state in lift(
            self.scene,
            source,
            source.embed(["red"]),
            negative=source.embed([""]),
            optimiser=optimiser,
            settings=settings,
            first_step=first_step,
        ):
            self.last = state
            self.moves.append(self.scene.values.detach() - before)
            before = self.scene.values.detach().clone()


def test_the_optimiser_steps_at_every_second_step_by_the_mean_of_both_gradients() -> None:
    settings = replace(IMAGE, steps=5, rates={"networks": Constant(0.1)}, times=replace(TIMES, t_max=Constant(0.3)))
    held = replace(settings, rates={"networks": Constant(0.0)})
    moves = Sgd(replace(settings, accumulate=2)).moves
    assert [bool(move.any()) for move in moves] == [False, True, False, True, True]
    one = Sgd(replace(settings, steps=1)).moves[0]
    second = Sgd(replace(settings, steps=2, accumulate=1, rates={"networks": lambda step: 0.1 * step})).moves[1]
    assert one.any() and second.any() and not Sgd(replace(held, steps=1)).moves[0].any()
    source = prior(Broken)
    source.bad = (1,)
    kept = Sgd(replace(settings, steps=2, accumulate=2), source).moves[1]
    # t is drawn by the step within the run, so runs of two steps are compared
    torch.testing.assert_close(Sgd(replace(settings, steps=2, accumulate=2)).moves[1], (one + second) / 2)
    torch.testing.assert_close(kept, one)
    with pytest.raises(ValueError, match="accumulate: got 0"):
        replace(settings, accumulate=0)


def test_a_run_that_goes_on_between_two_steps_of_the_optimiser_takes_the_same_steps() -> None:
    settings = replace(IMAGE, steps=6, rates={"networks": Constant(0.1)}, accumulate=3)
    whole = Sgd(settings)
    assert len(Sgd(settings, first_step=2).moves) == 6 and len(Sgd(settings, first_step=4).moves) == 3
    assert torch.equal(whole.scene.values, Sgd(settings, first_step=2).scene.values)


class Echo:
    """A twin that predicts zeros and writes down what it is told."""

    def __init__(self) -> None:
        self.poses: list[Tensor] = []
        self.heard: list[Tensor] = []
        self.lessons: list[tuple[Tensor, Tensor, int]] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, *, pose: Tensor | None = None) -> Tensor:
        assert pose is not None and not x_t.requires_grad
        self.poses.append(pose)
        self.heard.append(condition.tensors["modes"])
        return torch.zeros_like(x_t)

    def learn(
        self, latents: Tensor, condition: Condition, *, pose: Tensor | None, generator: Generator, average: Any
    ) -> float:
        assert pose is not None
        self.lessons.append((latents, condition.tensors["modes"], generator.initial_seed()))
        return 0.5


def test_a_twin_answers_its_role_and_learns_every_rendering_after_the_step() -> None:
    twin, scene = Echo(), Flat()
    settings = replace(SETTINGS, steps=3, method=Method(combiner="vsd", scale=5.0))
    found = states(scene, settings, twin=twin)  # type: ignore[arg-type]
    assert [state.metrics["network_calls"] for state in found] == [5.0] * 3
    assert [state.metrics["twin_loss"] for state in found] == [0.5] * 3
    assert len(twin.lessons) == 3 and len({seed for *_, seed in twin.lessons}) == 3
    for state, pose, (latents, modes, _) in zip(found, twin.poses, twin.lessons, strict=True):
        assert torch.equal(pose[:, 9:], state.camera.position)
        assert torch.equal(pose[:, :9].unflatten(1, (3, 3)), state.camera.c2w)
        assert torch.equal(latents, prior().encode(state.rendering.rgb)) and not latents.requires_grad
        assert torch.equal(modes, torch.tensor([[1.0, 0.0]]).expand(3, 2))


def test_a_twin_is_asked_and_taught_with_its_own_prompt_where_it_has_one() -> None:
    twin = Echo()
    settings = replace(SETTINGS, steps=2, method=Method(combiner="vsd", scale=5.0))
    states(Flat(), settings, twin=twin, extra={"twin": prior().embed(["blue"])})  # type: ignore[arg-type]
    for modes in (*(modes for _, modes, _ in twin.lessons), *twin.heard):
        assert torch.equal(modes.expand(3, 2), torch.tensor([[0.0, 1.0]]).expand(3, 2))


def test_a_twin_does_not_learn_a_step_twice_when_a_run_goes_back_to_the_start_of_a_window() -> None:
    settings = replace(SETTINGS, steps=8, accumulate=4, method=Method(combiner="vsd", scale=5.0))
    whole, parted = Echo(), Echo()
    states(Flat(), settings, twin=whole)  # type: ignore[arg-type]
    found = states(Flat(), settings, twin=parted, first_step=6)  # type: ignore[arg-type]
    assert [state.step for state in found] == [4, 5, 6, 7]
    seeds = [[seed for *_, seed in twin.lessons] for twin in (whole, parted)]
    assert seeds[1] == seeds[0][6:]
