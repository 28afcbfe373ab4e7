"""The loop's settings from the config: method, its roles and twin, times, factors, views, learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import torch

from threestudio_rf.app.build.prior import wording
from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.settings.config import Config, one_of
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.app.settings.loss import LossConfig
from threestudio_rf.core.convert import KINDS
from threestudio_rf.core.times import LAWS, Bump
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.twin import NAME as TWIN
from threestudio_rf.priors.twin import Twin
from threestudio_rf.priors.views import OCTANT_WORDS, VIEWS, Curves, view_prompts
from threestudio_rf.scenes.base import Scene
from threestudio_rf.trainer.lift import LiftSettings, Times, Views
from threestudio_rf.trainer.optim import make_optimiser
from threestudio_rf.trainer.ramp import Value, ramp
from threestudio_rf.trainer.settings import WORDINGS


def pair(values: list[float]) -> tuple[float, float]:
    """A list of two numbers as a range."""
    low, high = values
    return low, high


def _views(config: Config) -> Views:
    camera, prior = config.camera, config.prior
    return Views(
        sizes=camera.sizes,
        milestones=camera.milestones,
        counts=camera.views,
        elevation=pair(camera.elevation),
        azimuth=pair(camera.azimuth),
        distance=pair(camera.distance),
        fovy=pair(camera.fovy),
        sphere=camera.sphere,
        stratified=camera.stratified,
        stray=(camera.position_perturb, camera.center_perturb, camera.up_perturb),
        front=prior.front,
        back=prior.back,
        overhead=prior.overhead,
        wording=one_of(wording(prior), WORDINGS),
    )


def lift_settings(config: Config) -> LiftSettings:
    """The settings of the loop."""
    loss = config.loss
    return LiftSettings(
        steps=config.trainer.steps,
        method=method_of(loss),
        rates=rates(config),
        lambdas=factors(loss, SCENES[config.scene.name].maps),
        views=_views(config),
        times=Times(
            t_min=ramp(loss.t_min),
            t_max=ramp(loss.t_max),
            law=one_of(loss.t_law, LAWS),
            shift=loss.t_shift,
            width=loss.t_width,
            draws=loss.draws,
            bump=_bump(loss.t_bump),
        ),
        encode_size=config.prior.image_size,
        latent=SCENES[config.scene.name].latent(config),
        clip=config.optim.clip,
        accumulate=config.optim.accumulate,
        perp_neg=_curves(loss) if loss.perp_neg else None,
        skip_limit=config.trainer.skip_limit,
        empty_limit=config.trainer.empty_limit,
        seed=config.seed,
    )


def method_of(loss: LossConfig) -> Method:
    """The method that the settings spell out; ValueError where they do not fit together."""
    return Method(
        space=one_of(loss.space, KINDS),
        weight=loss.weight,
        noise=loss.noise,
        scale=loss.scale,
        guidance_interval=pair(loss.guidance_interval),
        rev_step=loss.rev_step,
        rev_steps=loss.rev_steps,
        invert_steps=loss.invert_steps,
        invert_scale=loss.invert_scale,
        invert_eta=loss.invert_eta,
        ism_delta=loss.ism_delta,
        trace_t=pair(loss.trace_t),
        huber=loss.huber,
        combiner=loss.combiner,
        stage_two=loss.stage_two,
        stage_two_noise=loss.stage_two_noise,
        stage_two_combiner=loss.stage_two_combiner,
    )


def _bump(values: list[float]) -> Bump:
    m1, m2, s1, s2 = values
    return m1, m2, s1, s2


def _curves(loss: LossConfig) -> Curves:
    given = (loss.perp_neg_f_fs, loss.perp_neg_f_sf, loss.perp_neg_f_fsb, loss.perp_neg_f_sb)
    return Curves(*((a, b, c) for a, b, c in given))


def rates(config: Config) -> dict[str, Value]:
    """Learning rate of each group over steps."""
    optim = config.optim
    given = {"encoding": optim.lr_encoding, "networks": optim.lr_networks, "background": optim.lr_background}
    given |= {"image": optim.lr_image, "geometry": optim.lr_geometry}
    return {name: ramp(value) for name, value in given.items()}


def build_optimiser(config: Config, scene: Scene) -> torch.optim.Optimizer:
    """AdamW over the groups of the scene."""
    optim = config.optim
    return make_optimiser(scene, rates(config), betas=pair(optim.betas), eps=optim.eps, weight_decay=optim.weight_decay)


def factors(loss: LossConfig, maps: Sequence[str]) -> dict[str, Value]:
    """Factor of the distillation and of each regulariser over steps; what is always 0 is left out, and thin surfaces
    (`z_variance`) where `maps`, those of the scene, know no thickness: a mesh and a picture have none."""
    given = {
        "sparsity": loss.lambda_sparsity,
        "opaqueness": loss.lambda_opaque,
        "orientation": loss.lambda_orient,
        "z_variance": loss.lambda_z_variance if "z_variance" in maps else 0,
        "border": loss.lambda_border,
        "total_variation": loss.lambda_tv,
        "laplacian": loss.lambda_laplacian,
        "normal_consistency": loss.lambda_normal_consistency,
        "convex": loss.lambda_convex,
    }
    found: dict[str, Value] = {"distill": ramp(loss.lambda_distill)}
    return found | {name: ramp(value) for name, value in given.items() if value != 0}


def role_patterns(config: Config) -> dict[str, str]:
    """The prompts of a method's roles beside "cond" and "uncond", by role, with {prompt} where the prompt goes.

    A method with the role "neg" gets the empty text as "uncond".
    """
    loss, roles = config.loss, method_of(config.loss).roles
    given = {"target": loss.target_prompt, "artifact": loss.artifact_prompt}
    if "neg" in roles:
        given |= {"neg": loss.neg_prompt or config.negative_prompt, "uncond": ""}
    return {role: text for role, text in given.items() if role in roles}


def names_of(config: PriorConfig) -> tuple[str, ...]:
    """The view words of the prior, one prompt each: of eight octants and three heights, or SD's four."""
    return OCTANT_WORDS if wording(config) == "octants" else VIEWS


def embed_roles(config: Config, prior: Prior, *, views: bool) -> dict[str, Condition]:
    """Embed the prompts of `role_patterns`, by role. Where there are `views`, a prompt that holds {prompt} is embedded
    once per view word, and a twin, which sees the camera, gets the prompt without view words (ProlificDreamer)."""
    texts = {TWIN: [config.prompt]} if views and TWIN in method_of(config.loss).roles else {}
    for role, pattern in role_patterns(config).items():
        text = pattern.replace("{prompt}", config.prompt)
        several = views and "{prompt}" in pattern
        prompts = view_prompts(text, pattern=config.prior.view_pattern, fits=prior.fits, views=names_of(config.prior))
        texts[role] = prompts if several else [text]
    if not texts:
        return {}
    embedded = prior.embed(list(chain.from_iterable(texts.values())))
    ends = accumulate((len(prompts) for prompts in texts.values()), initial=0)
    return {role: embedded.select(list(range(*part))) for role, part in zip(texts, pairwise(ends), strict=True)}


def build_twin(config: Config, prior: Prior, like: Condition) -> Twin | None:
    """The twin of a method that has one; it sees cameras where the scene is posed. Loads the network."""
    loss = config.loss
    if TWIN not in method_of(loss).roles:
        return None
    posed = SCENES[config.scene.name].posed
    return Twin(prior, like, rank=loss.twin_rank, rate=loss.twin_lr, posed=posed, seed=config.seed)
