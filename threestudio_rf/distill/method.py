"""A distillation method is a row of data; one function serves all of them.

Four choices are independent: where the noise comes from (`noise.SOURCES`), which space and weight the residual has
(`core.convert`, `weights.WEIGHTS`), how predictions combine (`combine.COMBINERS`), and how t is drawn
(`core.times.draw`), which is the business of whoever calls `distill`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, split
from threestudio_rf.core.guide import within
from threestudio_rf.core.level import Level, Schedule, column
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import Part
from threestudio_rf.core.transfer import sent
from threestudio_rf.distill.combine import COMBINERS, Combiner
from threestudio_rf.distill.guidance import Guidance
from threestudio_rf.distill.noise import SOURCES
from threestudio_rf.distill.residual import bounded, gradient, surrogate
from threestudio_rf.distill.weights import WEIGHTS


@dataclass(frozen=True)
class Method:
    """`space` and `weight` of the residual, `noise` source, `combiner`, guidance `scale` s: uncond + s (cond - uncond).

    guidance_interval           noise levels that hear guidance, both ends included; the scale is 1 at others
                                (arXiv 2404.07724), where "uncond" costs no call
    rev_step, rev_steps         of noise "rev": k (None: 1 - t), and the number of fixed-point steps
    invert_steps, _scale, _eta  of "inverted", "push_back", "ism": steps from t = 0 to 1, a smaller t has its share of
                                them; guidance scale of the inversion; share of fresh noise
    ism_delta                   of "ism": how far t is from the time before
    trace_t                     of "trace": window of the time of the estimate that its bridge leads to
    huber                       c: the residual r of each sample becomes r / sqrt(mean r^2 + c^2), SIM's pseudo-Huber
                                distance (arXiv 2410.16794); None: it stays
    stage_two                   share of the run after which `stage_two_noise` and `stage_two_combiner` take over, as
                                far as they are named; None: never

    ValueError for an unknown name, numbers out of range, an interval beside a combiner without guidance,
    and "ism" or "trace" in another space than eps, where their x_t is not made of x0 and eps.
    """

    space: Kind = "flow"
    weight: str = "uniform"
    noise: str = "random"
    combiner: str = "cfg"
    scale: float = 100.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rev_step: float | None = None
    rev_steps: int = 1
    invert_steps: int = 10
    invert_scale: float = 0.0
    invert_eta: float = 0.0
    ism_delta: float = 0.05
    trace_t: tuple[float, float] = (0.02, 0.7)
    huber: float | None = None
    stage_two: float | None = None
    stage_two_noise: str = ""
    stage_two_combiner: str = ""

    def __post_init__(self) -> None:
        named = (
            ("weight", self.weight, [*WEIGHTS]),
            ("noise", self.noise, [*SOURCES]),
            ("combiner", self.combiner, [*COMBINERS]),
            ("stage_two_noise", self.stage_two_noise, ["", *SOURCES]),
            ("stage_two_combiner", self.stage_two_combiner, ["", *COMBINERS]),
        )
        for name, got, known in named:
            if got not in known:
                raise ValueError(f"{name}: got {got!r}, expected one of {known}")
        if self.rev_steps < 0 or self.invert_steps < 1 or self.invert_eta < 0 or self.ism_delta <= 0:
            numbers = (self.rev_steps, self.invert_steps, self.invert_eta, self.ism_delta)
            raise ValueError(
                f"rev_steps, invert_steps, invert_eta, ism_delta: got {numbers}, expected at least 0, 1, 0 and above 0"
            )
        if self.huber is not None and self.huber < 0:
            raise ValueError(f"huber: got {self.huber}, expected at least 0")
        if not 0 < self.trace_t[0] <= self.trace_t[1] < 1:
            raise ValueError(f"trace_t: got {[*self.trace_t]}, expected two times above 0 and below 1, the lower first")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval: got {[low, high]}, expected two levels from 0 to 1, the lower first")
        unguided = [name for name in (self.combiner, self.stage_two_combiner) if name and not COMBINERS[name].guided]
        if (low, high) != (0, 1) and unguided:
            raise ValueError(
                f"guidance_interval: got {[low, high]} with combiner {unguided[0]}, whose scale is no guidance; "
                f"expected [0, 1], or one of {[name for name, row in COMBINERS.items() if row.guided]}"
            )
        apart = [name for name in (self.noise, self.stage_two_noise) if name in ("ism", "trace")]
        if apart and self.space != "eps":
            raise ValueError(f"space: got {self.space} with noise {apart[0]}, expected eps")

    def at(self, progress: float) -> Method:
        """The method at this share of the run, 0..1."""
        if self.stage_two is None or progress < self.stage_two:
            return self
        noise, combiner = self.stage_two_noise or self.noise, self.stage_two_combiner or self.combiner
        return replace(self, noise=noise, combiner=combiner, stage_two=None)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that some stage may ask for."""
        stages = [self.combiner, *([self.stage_two_combiner] if self.stage_two_combiner else [])]
        return tuple(dict.fromkeys(role for name in stages for role in COMBINERS[name].roles))

    def guidance(self, t: Tensor, *, progress: float = 0.0, negatives: Mapping[str, Tensor] | None = None) -> Guidance:
        """How predictions at t (B,) combine, with Perp-Neg where there are weights (B,) of negative roles."""
        scale = within(self.scale, t, self.guidance_interval)
        return Guidance(COMBINERS[self.combiner].mix(scale, t, progress), negatives or {})


METHODS: dict[str, Method] = {
    "sds": Method(space="eps", weight="sigma2"),
    "sjc": Method(space="eps", scale=101.0),
    "rfds": Method(),
    "rfds_rev": Method(noise="rev"),
    "rfds_rev_instaflow": Method(noise="rev", rev_step=1.0, scale=50.0),
    "sdi": Method(space="x0", noise="inverted", scale=7.5, invert_scale=-7.5, invert_eta=0.3),
    "csd": Method(space="eps", combiner="csd", scale=1.0),
    "nfsd": Method(space="eps", weight="sigma2", combiner="nfsd", scale=7.5),
    "bridge": Method(space="eps", weight="sigma2", scale=40.0, stage_two=0.5, stage_two_combiner="bridge"),
    "ism": Method(space="eps", weight="sigma_over_alpha", noise="ism", scale=7.5, invert_steps=5),
    "ucm": Method(scale=60.0, invert_steps=3, invert_scale=1.0, stage_two=0.36, stage_two_noise="push_back"),
    "vsd": Method(space="eps", weight="sigma2", combiner="vsd", scale=7.5),
    "sim": Method(space="x0", combiner="vsd", scale=8.5, huber=0.0),
    "trace": Method(space="eps", noise="trace", combiner="trace", scale=20.0),
    "ours": Method(scale=4.0),
}


@dataclass(frozen=True)
class Distilled:
    """`loss` has gradient `grad` (B, C, h, w) at the latents. `x0_hat` is the guided estimate (where the combination is
    a difference, that of its first role), `eps` the noise used.

    `residual_norm` (B,) is the root mean square of weight times residual; `eps_mean`, `eps_var` are those of one
    sample's noise, averaged over the batch. `skipped`, a truth value that nobody has waited for yet:
    something was not finite, `grad` is zero; leave out the step.
    `lesson`: (x_t, t, eps) for a twin that learns along the step's own noise, else None.
    """

    loss: Tensor
    grad: Tensor
    x0_hat: Tensor
    eps: Tensor
    residual_norm: Tensor
    eps_mean: Tensor
    eps_var: Tensor
    skipped: Tensor
    lesson: tuple[Tensor, Tensor, Tensor] | None = None


def distill(
    latents: Tensor,
    model: Model,
    t: Tensor,
    *,
    method: Method,
    generator: Generator | Part,
    negatives: Mapping[str, Tensor] | None = None,
    progress: float = 0.0,
) -> Distilled:
    """One evaluation for `latents` (B, C, h, w) at times t (B,): gradient = weight(t) residual / M / B.

    `model` is asked for the roles of the combiner, as far as they have a weight: "cond" and, unless the scale is 1,
    "uncond" for classifier-free guidance. `negatives` are Perp-Neg's weights (B,) by role; `model` must know these
    roles and "uncond". Rev's inner call is the prompt alone, without either.
    `progress` is the share of the run that is over, 0..1.

    The scale binds: a scene parameter that colours the whole picture evenly gets the same gradient at any resolution
    and for a repeated batch. ValueError for a t outside the schedule, before anything is predicted.
    """
    check_times(t, model.schedule)
    method = method.at(progress)
    guide = method.guidance(t, progress=progress, negatives=negatives).to(latents.device)
    t = sent(t, latents.device)
    combiner = COMBINERS[method.combiner]
    x0 = latents.detach().float() if latents.dtype in (torch.float16, torch.bfloat16) else latents.detach()
    with torch.no_grad():
        level = model.schedule(t)
        x_t, eps = SOURCES[method.noise](x0, t, model, method=method, generator=generator)
        predictions = {role: p.to(x0) for role, p in model(x_t, t, guide.roles).items()}
        target = combiner.target
        r = gradient(
            x0, x_t, eps, predictions, level, kind=model.kind, space=method.space, guidance=guide, target=target
        )
        if method.huber is not None:
            r = bounded(r * x0[0].numel(), method.huber) / x0[0].numel()
        weighted = column(WEIGHTS[method.weight](level), x0) * r
        grad = weighted / len(x0)
        skipped = ~grad.isfinite().all()
        grad = torch.where(skipped, 0, grad)
        x0_hat = _estimate(combiner, guide, predictions, x_t, level=level, kind=model.kind)
        norm = weighted.flatten(1).square().mean(1).sqrt() * x0[0].numel()
        flat = eps.flatten(1)
    loss = surrogate(latents, grad)
    lesson = (x_t, t, eps) if combiner.along else None
    return Distilled(loss, grad, x0_hat, eps, norm, flat.mean(), flat.var(1, correction=0).mean(), skipped, lesson)


def check_times(t: Tensor, schedule: Schedule) -> None:
    """ValueError for a t that is not above 0 and at most 1, or below the first entry of a table."""
    lowest = 0.0 if schedule.table is None else 0.5 / len(schedule.table)
    if not bool(((t > lowest) & (t <= 1)).all()):
        raise ValueError(f"t: got {t.min():g}..{t.max():g}, expected above {lowest:g} and at most 1")


def _estimate(
    combiner: Combiner, guide: Guidance, predictions: Mapping[str, Tensor], x_t: Tensor, *, level: Level, kind: Kind
) -> Tensor:
    """x0_hat (B, C, h, w): only weights that sum to 1 commute with `split`."""
    p = guide(predictions) if combiner.target == 1 else predictions[next(iter(guide.weights))]
    return split(kind, p, x_t, level)[0]
