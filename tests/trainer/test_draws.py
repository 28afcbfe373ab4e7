"""Several noises per rendering: the gradient is their mean, the cost theirs, the rest of a step as before.

Seen to fail: the sum for the mean, one noise for all draws, view words in another order than the latents, calls of one
draw counted, x0_hat of every draw handed out, times that are not stratified, a twin shown one copy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from looks import LIMITS, LOOKS, TIMES
from torch import Tensor

from threestudio_rf.distill.method import Method
from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.views import VIEWS
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.trainer.lift import LiftSettings, lift
from threestudio_rf.trainer.optim import make_optimiser
from threestudio_rf.trainer.ramp import Constant

SHAPE, VIEWED = (3, 3, 4, 4), 3
SETTINGS = LiftSettings(
    steps=1,
    method=Method(scale=1.0),
    rates={"image": Constant(0.1)},
    views=replace(LOOKS, counts=[VIEWED]),
    times=replace(TIMES, draws=4),
    **LIMITS,
    latent=True,
)


class Witness(GaussianPrior):
    """Writes down what it is asked, and knows one mode per view word."""

    asked: list[tuple[Tensor, Tensor, Tensor]]

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.asked.append((x_t, t, condition.tensors["modes"]))
        return super().predict(x_t, t, condition)


class Pupil:
    """A twin that predicts zeros and keeps the latents that it is shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, *, pose: Tensor | None = None) -> Tensor:
        assert pose is not None and len(pose) == len(x_t)
        return torch.zeros_like(x_t)

    def learn(
        self, latents: Tensor, condition: Condition, *, pose: Tensor | None, generator: Any, average: Any
    ) -> float:
        self.shown.append(latents)
        return 0.5


def stepped(settings: LiftSettings, **given: Any) -> tuple[ImageScene, Witness, Any]:
    """One step on three latents; the prior has a mode for each view word."""
    means = torch.linspace(-1, 1, 4)[:, None, None, None].expand(4, *SHAPE[1:])
    source = Witness(means, 0.3, names=list(VIEWS))
    source.asked = []
    scene = ImageScene(SHAPE, "latent", generator=torch.Generator().manual_seed(0))
    optimiser = make_optimiser(scene, settings.rates, weight_decay=0.0)
    conditions, negative = source.embed(list(VIEWS)), source.embed([""])
    run = lift(scene, source, conditions, negative=negative, optimiser=optimiser, settings=settings, **given)
    (state,) = list(run)
    return scene, source, state


def test_the_gradient_is_the_mean_over_the_draws_and_every_draw_has_its_noise_and_its_share_of_t() -> None:
    scene, source, state = stepped(SETTINGS)
    ((x_t, t, modes),) = source.asked
    assert x_t.shape == (12, 3, 4, 4) and scene.values.grad is not None
    x0 = ImageScene(SHAPE, "latent", generator=torch.Generator().manual_seed(0)).values.detach().repeat(4, 1, 1, 1)
    column = t[:, None, None, None]
    eps = (x_t - (1 - column) * x0) / column
    residual = super(Witness, source).predict(x_t, t, Condition({"modes": modes})) - (eps - x0)
    wanted = residual.unflatten(0, (4, 3)).mean(0) / x0[0].numel() / 3
    assert torch.allclose(scene.values.grad, wanted, rtol=1e-4, atol=1e-7)
    assert len({round(float(e[0, 0, 0]), 4) for e in eps}) == 12
    shares = (t - 0.02).unflatten(0, (4, 3)) / 0.96
    assert torch.equal((4 * shares).floor(), torch.arange(4.0)[:, None].expand(4, 3))
    words = SETTINGS.views.index(state.camera)
    assert torch.equal(modes, torch.eye(4)[words].repeat(4, 1)) and len(words.unique()) > 1


@pytest.mark.parametrize("draws", [1, 4])
def test_a_step_costs_its_draws_and_hands_out_one_estimate_per_picture(draws: int) -> None:
    twin = Pupil()
    method = Method(combiner="vsd", scale=5.0)
    settings = replace(SETTINGS, method=method, times=replace(TIMES, draws=draws))
    _, _, state = stepped(settings, twin=twin)
    assert state.metrics["network_calls"] == 5 * draws and state.metrics["twin_loss"] == 0.5
    assert len(state.x0_hat) == len(state.rendering.rgb) == 3
    before = ImageScene(SHAPE, "latent", generator=torch.Generator().manual_seed(0)).values.detach()
    assert torch.allclose(twin.shown[0], before.repeat(draws, 1, 1, 1), atol=0.11), "up to the step of 0.1 itself"


def test_there_is_at_least_one_draw() -> None:
    with pytest.raises(ValueError, match="draws: got 0"):
        replace(TIMES, draws=0)
