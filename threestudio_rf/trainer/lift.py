"""Text to scene: render a few views, encode them, distil, step. A generator of states; files are somebody else's.

Every random number is drawn from (seed, step, stream), so a run that goes on from a checkpoint, and one that is looked
at more often, take the same steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from threestudio_rf.core.model import Model
from threestudio_rf.core.random import Part, generator
from threestudio_rf.distill.method import Distilled, distill
from threestudio_rf.priors.base import Condition, Prior, bind
from threestudio_rf.priors.twin import LEARNING_CALLS, Average, Twin, with_twin
from threestudio_rf.priors.twin import NAME as TWIN
from threestudio_rf.priors.views import VIEWS, mix, perp_neg_weights
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.scenes.regularize import REGULARIZERS
from threestudio_rf.trainer.accumulate import Accumulated
from threestudio_rf.trainer.optim import set_rates
from threestudio_rf.trainer.ranks import ALONE, Ranks
from threestudio_rf.trainer.settings import LiftSettings as LiftSettings
from threestudio_rf.trainer.settings import Times as Times
from threestudio_rf.trainer.settings import Views as Views
from threestudio_rf.trainer.settings import progress


class DivergedError(RuntimeError):
    """The loss or its gradient was not finite for too many steps in a row."""


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
    extra: Mapping[str, Condition] | None = None,
    twin: Twin | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[LiftState]:
    """Optimise `scene` from `first_step` to `settings.steps`, yielding after every step.

    `conditions` are the prompts of all views in the order of `settings.views.index`, or one prompt for every camera;
    `negative` one prompt or as many; `extra` further roles of the method, likewise, or another "uncond". A `twin`
    answers the role "twin" and learns the scene's latents after every step. The rendering decides the batch. Of several
    `ranks` each asks the prior about its share of the views, or all about a single one, and renders as `Ranks.render`
    says; metrics are means over all, states show the process's own share.

    A step whose gradient is not finite is left out and counted; `skip_limit` of them in a row raise DivergedError. A
    scene that stays empty for `empty_limit` steps is warned about once. A `first_step` between two steps of the
    optimiser goes back to the first whose gradient is missing; a twin has learnt those steps and skips them.
    """
    skipped = empty = 0
    gathered, every, draws = Accumulated(optimiser, clip=settings.clip), settings.accumulate, settings.times.draws
    for step in range(first_step - first_step % every, settings.steps):
        scene.update(step, generator(settings.seed, step, "update"))
        set_rates(optimiser, settings.rates, step)
        views = settings.views.camera(step, settings.seed).to(device)
        camera = ranks.share(views, scene)
        batch = ranks.of_batch(camera, views)
        asked = repeated(camera, draws)
        seen = seen_from(conditions, negative, camera=asked, settings=settings, extra=extra)
        model = bind(prior, seen.conditions)
        if twin is not None:
            model = with_twin(model, twin, seen.of_twin, pose(asked))
        normals = any(settings.factor(name, step) > 0 for name in ("orientation", "convex"))
        rendering = ranks.render(scene, views, generator(settings.seed, step, "render"), normals=normals)
        latents = encoded(rendering.rgb, prior, settings)
        terms = {name: partial(term, rendering) for name, term in REGULARIZERS.items()} | scene.terms()
        loss, result, figures = objective(
            rendering,
            latents,
            model,
            negatives=seen.negatives,
            step=step,
            settings=settings,
            terms=terms,
            ranks=batch,
        )
        gathered.clear()
        loss.backward()
        metrics = ranks.average(gathered.parameters, figures | {"skipped": result.skipped}, norm="grad_norm")
        norm = metrics.pop("grad_norm")
        skip = metrics.pop("skipped") > 0 or not math.isfinite(norm)
        if not skip:
            gathered.add()
        if ((step + 1) % every == 0 or step + 1 == settings.steps) and gathered.step():
            scene.after_step(optimiser, step)
        if twin is not None and step >= first_step:
            fresh = batch.part(generator(settings.seed, step, "twin"), len(latents), draws)
            metrics["twin_loss"] = taught(
                twin, result, latents, seen.of_twin, pose=pose(asked), generator=fresh, average=ranks.average
            )
            model.calls += LEARNING_CALLS
        skipped = skipped + 1 if skip else 0
        empty = empty + 1 if metrics["opacity"] < 1e-3 else 0
        metrics |= {"grad_norm": norm, "skipped": float(skip), "network_calls": float(draws * model.calls)}
        if skipped >= settings.skip_limit:
            raise DivergedError(_diverged(step, skipped, metrics, seen.conditions))
        if empty == settings.empty_limit:
            warnings.warn(_empty(step, empty), stacklevel=2)
        yield LiftState(step, metrics, camera, _detached(rendering), result.x0_hat[: len(rendering.rgb)])


def repeated(camera: Camera, times: int) -> Camera:
    """The cameras `times` times over, in the order of the latents of `encoded`."""
    views = torch.arange(len(camera), device=camera.azimuth.device)
    return camera if times == 1 else camera.select(views.repeat(times))


def taught(
    twin: Twin,
    result: Distilled,
    latents: Tensor,
    condition: Condition,
    *,
    pose: Tensor,
    generator: Generator | Part,
    average: Average,
) -> float:
    """The twin's loss in its training step: on the latents under fresh noise, or along what distillation noised."""
    if result.lesson is None:
        return twin.learn(latents.detach(), condition, pose=pose, generator=generator, average=average)
    return twin.follow(*result.lesson, condition, pose=pose, average=average)


def pose(camera: Camera) -> Tensor:
    """What a twin sees of each camera: its rotation and position, (B, 12)."""
    return torch.cat([camera.c2w.flatten(1), camera.position], 1)


class Seen(NamedTuple):
    """The condition of every role from some cameras, and the weights (B,) of Perp-Neg's roles."""

    conditions: dict[str, Condition]
    negatives: dict[str, Tensor]

    @property
    def of_twin(self) -> Condition:
        """What a twin is asked with: the role "twin" where there is one, else the prompt."""
        return self.conditions.get(TWIN, self.conditions["cond"])


def seen_from(
    conditions: Condition,
    negative: Condition,
    *,
    camera: Camera,
    settings: LiftSettings,
    extra: Mapping[str, Condition] | None = None,
) -> Seen:
    """The view prompt of each camera; a role has one prompt for all, or one per view word.

    With Perp-Neg the prompts of neighbouring views are mixed, and the weights (B,) of its negative roles come along.
    ValueError for Perp-Neg without a prompt per view word.
    """
    roles = {"cond": conditions, "uncond": negative} | dict(extra or {})
    if settings.views.wording == "camera":
        seen = {role: prompts.posed(camera.azimuth, camera.elevation) for role, prompts in roles.items()}
        return Seen(seen, {})
    several = [role for role, prompts in roles.items() if len(prompts) > 1]
    if several:
        index = settings.views.index(camera)
        roles |= {role: roles[role].select(index) for role in several}
    if settings.perp_neg is None:
        return Seen(roles, {})
    if len(conditions) != len(VIEWS):
        raise ValueError(f"conditions: got {len(conditions)}, expected {len(VIEWS)} view prompts for Perp-Neg")
    overhead, curves = settings.views.overhead, settings.perp_neg
    shares = perp_neg_weights(camera.azimuth, camera.elevation, overhead=overhead, curves=curves)
    heard = roles | {"cond": mix(conditions, shares.positive)}
    negatives = dict(zip(("negative 1", "negative 2"), shares.weights.unbind(1), strict=True))
    heard |= {role: conditions.select(view) for role, view in zip(negatives, shares.negative.unbind(1), strict=True)}
    return Seen(heard, negatives)


def encoded(picture: Tensor, prior: Prior, settings: LiftSettings) -> Tensor:
    """The latents (draws B, C, h, w) of B pictures, all of them once per draw, with their graph."""
    latents = _latents(picture, prior, settings)
    return latents if settings.times.draws == 1 else latents.repeat(settings.times.draws, 1, 1, 1)


def _latents(image: Tensor, prior: Prior, settings: LiftSettings) -> Tensor:
    if settings.latent:
        return image
    if settings.encode_size and image.shape[-1] != settings.encode_size:
        size = (settings.encode_size, settings.encode_size)
        smaller = settings.encode_size < image.shape[-1]
        image = F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=smaller)
    return prior.encode(image)


def objective(
    rendering: Rendering,
    latents: Tensor,
    model: Model,
    *,
    negatives: Mapping[str, Tensor],
    step: int,
    settings: LiftSettings,
    terms: Mapping[str, Callable[[], Tensor]],
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Distilled, dict[str, Tensor]]:
    """The loss of a step with those of the regularisers `terms` that have a factor, what distillation found, and the
    figures of both, which nobody has waited for yet."""
    count, draws = len(latents), settings.times.draws
    t = settings.times.draw(count * ranks.size, step, settings.steps, settings.seed, schedule=model.schedule)
    t = t[ranks.rows(count, draws)]
    result = distill(
        latents,
        model,
        t,
        method=settings.method,
        generator=ranks.part(generator(settings.seed, step, "noise"), count, draws),
        negatives=negatives,
        progress=progress(step, settings.steps),
    )
    factors = {name: value(step) for name, value in settings.lambdas.items()}
    loss = factors.get("distill", 1.0) * result.loss
    figures = {"distill": result.loss, "t": t.mean(), "opacity": rendering.opacity.mean()}
    for name, factor in factors.items():
        if name != "distill" and factor > 0:
            figures[name] = terms[name]()
            loss = loss + factor * figures[name]
    figures |= {
        "loss": loss,
        "residual_norm": result.residual_norm.mean(),
        "eps_mean": result.eps_mean,
        "eps_var": result.eps_var,
    }
    return loss, result, {name: value.detach() for name, value in figures.items()}


def _detached(rendering: Rendering) -> Rendering:
    rest = (None if x is None else x.detach() for x in rendering[2:])
    return Rendering(rendering.rgb.detach(), rendering.opacity.detach(), *rest)


def _diverged(step: int, skipped: int, metrics: Mapping[str, float], conditions: Mapping[str, Condition]) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    norms = (
        f"{role} {name} {tensor.float().norm().item():.4g}"
        for role, condition in conditions.items()
        for name, tensor in condition.tensors.items()
    )
    return (
        f"step {step}: the loss or its gradient was not finite for {skipped} steps in a row ({figures}); "
        f"norms of what the prompts became: {', '.join(norms)}; "
        "the last good checkpoint is kept; a lower optim.lr_* or loss.scale, or fp32, may help"
    )


def _empty(step: int, steps: int) -> str:
    return (
        f"step {step}: the scene has been empty (opacity below 0.001) for {steps} steps; lower loss.lambda_sparsity "
        "or raise scene.field.blob_density"
    )
