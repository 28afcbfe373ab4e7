"""Objects from settings: one plain table per kind, every argument by name. No registry, no code named in a config."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threestudio_rf.app.build.method import lift_settings as lift_settings
from threestudio_rf.app.build.method import names_of, pair
from threestudio_rf.app.build.method import rates as rates
from threestudio_rf.app.build.prior import EMBEDDED as EMBEDDED
from threestudio_rf.app.build.prior import build_prior as build_prior
from threestudio_rf.app.build.prior import pick_dtype as pick_dtype
from threestudio_rf.app.build.prior import prior_id as prior_id
from threestudio_rf.app.build.prior import text_cache as text_cache
from threestudio_rf.app.build.prior import wording
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.groups import BackgroundConfig, CameraConfig, ImageConfig, SceneConfig
from threestudio_rf.core.random import generator
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.views import unreachable_views, view_prompts
from threestudio_rf.scenes.background import EnvironmentBackground, SolidBackground
from threestudio_rf.scenes.camera import Camera, orbit
from threestudio_rf.scenes.field import HashGridField
from threestudio_rf.scenes.hashgrid import make_encoding
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.scenes.nerf import HashGridNeRF


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


def build_scene(config: SceneConfig, seed: int, device: torch.device) -> HashGridNeRF:
    """A fresh object on `device`; the same seed gives the same one."""
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


def build_image(config: ImageConfig, prior: Prior, seed: int, device: torch.device) -> ImageScene:
    """Fresh pictures or latents of the prior's size, or of `config.size`; the same seed gives the same ones."""
    channels, *size = prior.latent_shape
    if config.kind == "pixels":
        channels = 3
        if not config.size:
            with torch.no_grad():
                size = list(prior.decode(torch.zeros(1, *prior.latent_shape, device=device)).shape[-2:])
    height, width = [config.size] * 2 if config.size else size
    return ImageScene(
        (config.particles, channels, height, width),
        config.kind,  # type: ignore[arg-type]
        generator=generator(seed, 0, "image"),
        std=config.std,
        init=config.init,  # type: ignore[arg-type]
        bound=None if config.bound == "auto" else config.bound,  # type: ignore[arg-type]
        per_step=config.per_step,
        order=config.order,  # type: ignore[arg-type]
    ).to(device)


def build_any(config: Config, prior: Prior, device: torch.device) -> HashGridNeRF | ImageScene:
    """The fresh scene that `scene.name` says."""
    if config.scene.name == "image":
        return build_image(config.scene.image, prior, config.seed, device)
    return build_scene(config.scene, config.seed, device)


def embed_views(config: Config, prior: Prior) -> tuple[Condition, Condition]:
    """The prompts of all views in the order of `names_of`, the one prompt for an image or a prior that hears the
    camera; and the negative prompt."""
    views = config.prior
    if wording(views) == "camera" and config.scene.name != "image":
        both = prior.embed([config.prompt, config.negative_prompt])
        return both.select([0]), both.select([1])
    if config.scene.name == "image":
        both = prior.embed([with_view(config, config.scene.image.view), config.negative_prompt])
        return both.select([0]), both.select([1])
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
        views=names_of(views),
    )
    unseen = unreachable_views(
        pair(config.camera.azimuth),
        pair(config.camera.elevation),
        front=views.front,
        back=views.back,
        overhead=views.overhead,
    )
    if unseen and wording(views) == "four":
        LOG.info("no camera of these ranges asks for the view: %s", ", ".join(unseen))
    both = prior.embed([*prompts, config.negative_prompt])
    return both.select(list(range(len(prompts)))), both.select([len(prompts)])


def with_view(config: Config, view: str) -> str:
    """The prompt with a view word, without one where `view` is empty."""
    pattern = config.prior.view_pattern if view else "{prompt}"
    return pattern.replace("{view}", view).replace("{prompt}", config.prompt)


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
