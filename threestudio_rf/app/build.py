"""Objects from settings: one plain table per kind, every argument by name. No registry, no code named in a config."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threestudio_rf.app.config import Config
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.prior import EMBEDDED as EMBEDDED
from threestudio_rf.app.prior import build_prior as build_prior
from threestudio_rf.app.prior import pick_dtype as pick_dtype
from threestudio_rf.app.prior import prior_id as prior_id
from threestudio_rf.app.prior import text_cache as text_cache
from threestudio_rf.app.settings import BackgroundConfig, CameraConfig, LossConfig, SceneConfig
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.views import Curves, unreachable_views, view_prompts
from threestudio_rf.scenes.background import EnvironmentBackground, SolidBackground
from threestudio_rf.scenes.camera import Camera, orbit
from threestudio_rf.scenes.field import HashGridField
from threestudio_rf.scenes.hashgrid import make_encoding
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.trainer.lift import LiftSettings, Times, Views
from threestudio_rf.trainer.ramp import Value, ramp


def pick_device(name: str) -> torch.device:
    """The device a run uses; UserError for a CUDA device that is not there, a notice where auto finds none."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        LOG.info("no CUDA device: running on the CPU")
        return torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device={name}: this machine shows {count} CUDA devices; use device=auto or device=cpu")
    return device


def _solid(config: BackgroundConfig, seed: int) -> nn.Module:
    red, green, blue = config.rgb
    return SolidBackground((red, green, blue))


def _environment(config: BackgroundConfig, seed: int) -> nn.Module:
    return EnvironmentBackground(generator=generator(seed, 0, "background"))


BACKGROUNDS: dict[str, Callable[[BackgroundConfig, int], nn.Module]] = {"solid": _solid, "environment": _environment}


def _nerf(config: SceneConfig, seed: int, device: torch.device) -> HashGridNeRF:
    grid, renderer = config.encoding, config.renderer
    encoding, reason = make_encoding(
        grid.backend,
        levels=grid.levels,
        features=grid.features,
        log2_table=grid.log2_table,
        base=grid.base,
        growth=grid.growth,
        device=device,
        generator=generator(seed, 0, "encoding"),
    )
    LOG.info("%s", reason)
    field = HashGridField(
        encoding,
        out_features=grid.levels * grid.features,
        hidden=config.field.hidden,
        layers=config.field.layers,
        radius=config.radius,
        blob_density=config.field.blob_density,
        blob_radius=config.field.blob_radius,
        generator=generator(seed, 0, "field"),
    )
    scene = HashGridNeRF(
        field,
        BACKGROUNDS[config.background.name](config.background, seed),
        radius=config.radius,
        samples_per_ray=renderer.samples_per_ray,
        occupancy_resolution=renderer.occupancy_resolution,
        occupancy_threshold=renderer.occupancy_threshold,
        random_background=config.background.random,
        ray_chunk=renderer.ray_chunk,
        marching=renderer.marching,
    )
    return scene.to(device)


SCENES: dict[str, Callable[[SceneConfig, int, torch.device], HashGridNeRF]] = {"nerf": _nerf}


def build_scene(config: SceneConfig, seed: int, device: torch.device) -> HashGridNeRF:
    """A fresh scene on `device`; the same seed gives the same one."""
    return SCENES[config.name](config, seed, device)


def embed_views(config: Config, prior: Prior) -> tuple[Condition, Condition]:
    """The four view prompts in the order of `views.VIEWS`, and the negative prompt."""
    views = config.prior
    given = {
        "side": views.prompt_side,
        "front": views.prompt_front,
        "back": views.prompt_back,
        "overhead": views.prompt_overhead,
    }
    prompts = view_prompts(
        config.prompt,
        pattern=views.view_pattern,
        overrides={view: text for view, text in given.items() if text is not None},
        fits=prior.fits,
    )
    unseen = unreachable_views(
        _pair(config.camera.azimuth),
        _pair(config.camera.elevation),
        front=views.front,
        back=views.back,
        overhead=views.overhead,
    )
    if unseen:
        LOG.info("no camera of these ranges asks for the view: %s", ", ".join(unseen))
    both = prior.embed([*prompts, config.negative_prompt])
    return both.select([0, 1, 2, 3]), both.select([4])


def _pair(values: list[float]) -> tuple[float, float]:
    low, high = values
    return low, high


def _views(config: Config) -> Views:
    camera, prior = config.camera, config.prior
    return Views(
        sizes=camera.sizes,
        milestones=camera.milestones,
        counts=camera.views,
        elevation=_pair(camera.elevation),
        azimuth=_pair(camera.azimuth),
        distance=_pair(camera.distance),
        fovy=_pair(camera.fovy),
        sphere=camera.sphere,
        stratified=camera.stratified,
        front=prior.front,
        back=prior.back,
        overhead=prior.overhead,
    )


def lift_settings(config: Config) -> LiftSettings:
    """The settings of the loop."""
    loss = config.loss
    return LiftSettings(
        steps=config.trainer.steps,
        method=Method(
            space=loss.space,  # type: ignore[arg-type]
            weight=loss.weight,
            noise=loss.noise,
            scale=loss.scale,
            rev_step=loss.rev_step,
            rev_steps=loss.rev_steps,
        ),
        rates=rates(config),
        lambdas=factors(loss),
        views=_views(config),
        times=Times(
            t_min=ramp(loss.t_min),
            t_max=ramp(loss.t_max),
            law=loss.t_law,  # type: ignore[arg-type]
            shift=loss.t_shift,
            width=loss.t_width,
        ),
        encode_size=config.prior.image_size,
        clip=config.optim.clip,
        perp_neg=_curves(loss) if loss.perp_neg else None,
        skip_limit=config.trainer.skip_limit,
        empty_limit=config.trainer.empty_limit,
        seed=config.seed,
    )


def _curves(loss: LossConfig) -> Curves:
    given = (loss.perp_neg_f_fs, loss.perp_neg_f_sf, loss.perp_neg_f_fsb, loss.perp_neg_f_sb)
    return Curves(*((a, b, c) for a, b, c in given))


def rates(config: Config) -> dict[str, Value]:
    """Learning rate of each group over steps."""
    optim = config.optim
    given = {"encoding": optim.lr_encoding, "networks": optim.lr_networks, "background": optim.lr_background}
    return {name: ramp(value) for name, value in given.items()}


def factors(loss: LossConfig) -> dict[str, Value]:
    """Factor of the distillation and of each regulariser over steps; what is always 0 is left out."""
    given = {
        "sparsity": loss.lambda_sparsity,
        "opaqueness": loss.lambda_opaque,
        "orientation": loss.lambda_orient,
        "z_variance": loss.lambda_z_variance,
        "total_variation": loss.lambda_tv,
    }
    found: dict[str, Value] = {"distill": ramp(loss.lambda_distill)}
    return found | {name: ramp(value) for name, value in given.items() if value != 0}


def turntable(config: CameraConfig, views: int) -> Camera:
    """The cameras of the final pictures."""
    return orbit(
        views,
        elevation=config.eval_elevation,
        distance=config.eval_distance,
        fovy=config.eval_fovy,
        height=config.eval_size,
        width=config.eval_size,
    )


def parameters_of(scene: nn.Module) -> int:
    """Number of parameters."""
    values: list[Tensor] = list(scene.parameters())
    return sum(value.numel() for value in values)
