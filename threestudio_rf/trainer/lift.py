"""Text to scene: render a few views, encode them, distil, step. A generator of states; files are somebody else's.

Every random number is drawn from (seed, step, stream), so a run that goes on from a checkpoint, and one that is looked
at more often, take the same steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.core.times import Law, draw
from threestudio_rf.distill.method import Distilled, Method, distill
from threestudio_rf.priors.base import Bound, Condition, Prior, bind
from threestudio_rf.priors.views import Curves, mix, perp_neg_weights, view_index
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, random_views
from threestudio_rf.scenes.regularize import REGULARIZERS
from threestudio_rf.trainer.optim import gradient_norm, set_rates
from threestudio_rf.trainer.ramp import Constant, Value


class DivergedError(RuntimeError):
    """The loss or its gradient was not finite for too many steps in a row."""


@dataclass(frozen=True)
class Views:
    """Which cameras a step looks through: ranges in degrees and units, picture size and number of views by milestone,
    and from where a view word holds."""

    sizes: Sequence[int] = (64,)
    milestones: Sequence[int] = ()
    counts: Sequence[int] = (2,)
    elevation: tuple[float, float] = (-10.0, 70.0)
    azimuth: tuple[float, float] = (-180.0, 180.0)
    distance: tuple[float, float] = (1.6, 2.0)
    fovy: tuple[float, float] = (40.0, 52.0)
    sphere: float = 0.5
    stratified: bool = True
    front: float = 45.0
    back: float = 45.0
    overhead: float = 60.0

    def camera(self, step: int, seed: int) -> Camera:
        """The cameras of a step."""
        stage = sum(step >= milestone for milestone in self.milestones)
        size = self.sizes[stage]
        return random_views(
            self.counts[min(stage, len(self.counts) - 1)],
            generator(seed, step, "camera"),
            elevation=self.elevation,
            azimuth=self.azimuth,
            distance=self.distance,
            fovy=self.fovy,
            sphere=self.sphere,
            stratified=self.stratified,
            height=size,
            width=size,
        )

    def index(self, camera: Camera) -> Tensor:
        """The view word of each camera (B,)."""
        return view_index(camera.azimuth, camera.elevation, front=self.front, back=self.back, overhead=self.overhead)


@dataclass(frozen=True)
class Times:
    """How t is drawn: a window whose ends may move, a law, and SD3's shift of the draw."""

    t_min: Value = field(default=Constant(0.02))
    t_max: Value = field(default=Constant(0.98))
    law: Law = "uniform"
    shift: float = 1.0
    width: float = 0.0

    def draw(self, n: int, step: int, steps: int, seed: int) -> Tensor:
        """Times (n,) of a step."""
        return draw(
            n,
            generator(seed, step, "t"),
            t_min=self.t_min(step),
            t_max=self.t_max(step),
            law=self.law,
            shift=self.shift,
            progress=step / max(1, steps - 1),
            width=self.width,
        )


@dataclass(frozen=True)
class LiftSettings:
    """One lift. `lambdas` are the factors of "distill" and of the regularizers; a factor of 0 is not computed.
    `rates` are the learning rates of the optimiser's groups. `encode_size` resizes the rendering before the encoder
    (0: as rendered). `clip` is the largest norm of the gradient (0: none). `perp_neg` weighs Perp-Neg's negative view
    prompts (None: no Perp-Neg)."""

    steps: int
    method: Method
    rates: Mapping[str, Value]
    lambdas: Mapping[str, Value] = field(default_factory=dict)
    views: Views = Views()
    times: Times = Times()
    encode_size: int = 0
    clip: float = 0.0
    perp_neg: Curves | None = None
    skip_limit: int = 20
    empty_limit: int = 100
    seed: int = 0

    def factor(self, name: str, step: int) -> float:
        """The factor of a loss term at a step, 0 when it is not named."""
        return self.lambdas[name](step) if name in self.lambdas else 0.0


@dataclass(frozen=True)
class LiftState:
    """What a step leaves behind: its number, figures, cameras, rendering (detached) and the prior's x0_hat latents."""

    step: int
    metrics: dict[str, float]
    camera: Camera
    rendering: Rendering
    x0_hat: Tensor


def lift(
    scene: Scene,
    prior: Prior,
    conditions: Condition,
    *,
    negative: Condition,
    optimiser: torch.optim.Optimizer,
    settings: LiftSettings,
    first_step: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[LiftState]:
    """Optimise `scene` from `first_step` to `settings.steps`, yielding after every step.

    `conditions` are the four view prompts in the order of `views.VIEWS`, `negative` one prompt or four. A step whose
    gradient is not finite is left out and counted; `skip_limit` of them in a row raise DivergedError. A scene that
    stays empty for `empty_limit` steps is warned about once.
    """
    skipped = empty = 0
    for step in range(first_step, settings.steps):
        scene.update(step, generator(settings.seed, step, "update"))
        set_rates(optimiser, settings.rates, step)
        camera = settings.views.camera(step, settings.seed).to(device)
        predict, negatives = seen_from(prior, conditions, negative, camera=camera, settings=settings)
        normals = settings.factor("orientation", step) > 0
        rendering = scene.render(camera, generator(settings.seed, step, "render"), normals=normals)
        loss, result, metrics = objective(rendering, prior, predict, negatives=negatives, step=step, settings=settings)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = gradient_norm(optimiser)
        skip = result.skipped or not bool(norm.isfinite())
        if not skip:
            _apply(optimiser, norm, settings.clip)
        skipped = skipped + 1 if skip else 0
        empty = empty + 1 if metrics["opacity"] < 1e-3 else 0
        metrics |= {"grad_norm": norm.item(), "skipped": float(skip), "network_calls": float(predict.calls)}
        if skipped >= settings.skip_limit:
            raise DivergedError(_diverged(step, skipped, metrics))
        if empty == settings.empty_limit:
            warnings.warn(_empty(step, empty), stacklevel=2)
        yield LiftState(step, metrics, camera, _detached(rendering), result.x0_hat)


def seen_from(
    prior: Prior, conditions: Condition, negative: Condition, *, camera: Camera, settings: LiftSettings
) -> tuple[Bound, dict[str, Tensor]]:
    """The prior with the view prompt of each camera; `negative` is one prompt for all or one per view word.

    With Perp-Neg the prompts of neighbouring views are mixed, and the weights (B,) of its negative roles come along.
    """
    index = settings.views.index(camera)
    against = negative.select(index) if len(negative) > 1 else negative
    if settings.perp_neg is None:
        return bind(prior, {"cond": conditions.select(index), "uncond": against}), {}
    overhead, curves = settings.views.overhead, settings.perp_neg
    shares = perp_neg_weights(camera.azimuth, camera.elevation, overhead=overhead, curves=curves)
    roles = {"cond": mix(conditions, shares.positive), "uncond": against}
    negatives = dict(zip(("negative 1", "negative 2"), shares.weights.unbind(1), strict=True))
    roles |= {role: conditions.select(view) for role, view in zip(negatives, shares.negative.unbind(1), strict=True)}
    return bind(prior, roles), negatives


def objective(
    rendering: Rendering,
    prior: Prior,
    predict: Bound,
    *,
    negatives: Mapping[str, Tensor],
    step: int,
    settings: LiftSettings,
) -> tuple[Tensor, Distilled, dict[str, float]]:
    """The loss of a step, what distillation found, and the figures of both."""
    image = rendering.rgb
    if settings.encode_size and image.shape[-1] != settings.encode_size:
        size = (settings.encode_size, settings.encode_size)
        image = F.interpolate(image, size, mode="bilinear", align_corners=False)
    latents = prior.encode(image)
    t = settings.times.draw(len(latents), step, settings.steps, settings.seed).to(latents.device)
    result = distill(
        latents,
        predict,
        t,
        prior_kind=prior.kind,
        schedule=prior.schedule,
        method=settings.method,
        generator=generator(settings.seed, step, "noise"),
        negatives=negatives,
    )
    factors = {name: value(step) for name, value in settings.lambdas.items()}
    loss = factors.get("distill", 1.0) * result.loss
    metrics = {"distill": result.loss.item(), "t": t.mean().item(), "opacity": rendering.opacity.mean().item()}
    for name, factor in factors.items():
        if name != "distill" and factor > 0:
            term = REGULARIZERS[name](rendering)
            loss = loss + factor * term
            metrics[name] = term.item()
    metrics |= {
        "loss": loss.item(),
        "residual_norm": result.residual_norm.mean().item(),
        "eps_mean": result.eps_mean.item(),
        "eps_var": result.eps_var.item(),
    }
    return loss, result, metrics


def _apply(optimiser: torch.optim.Optimizer, norm: Tensor, clip: float) -> None:
    if clip and norm > clip:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    optimiser.step()


def _detached(rendering: Rendering) -> Rendering:
    rest = (None if x is None else x.detach() for x in rendering[2:])
    return Rendering(rendering.rgb.detach(), rendering.opacity.detach(), *rest)


def _diverged(step: int, skipped: int, metrics: Mapping[str, float]) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return (
        f"step {step}: the loss or its gradient was not finite for {skipped} steps in a row ({figures}); "
        "the last good checkpoint is kept; a lower optim.lr_* or loss.scale, or fp32, may help"
    )


def _empty(step: int, steps: int) -> str:
    return (
        f"step {step}: the scene has been empty (opacity below 0.001) for {steps} steps; lower loss.lambda_sparsity "
        "or raise scene.field.blob_density"
    )
