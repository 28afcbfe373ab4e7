"""Objects from settings: one plain table per kind, every argument by name. No registry, no code named in a config."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from threestudio_rf.app.build.check.image import check_image
from threestudio_rf.app.build.check.type import check_memory
from threestudio_rf.app.build.prior import build_prior as build_prior
from threestudio_rf.app.build.prior import pick_dtype as pick_dtype
from threestudio_rf.app.build.prior import prior_id as prior_id
from threestudio_rf.app.build.prior import text_cache as text_cache
from threestudio_rf.app.build.start import start_mesh
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config, one_of
from threestudio_rf.app.settings.groups import BackgroundConfig, ImageConfig, SceneConfig, ShadingConfig
from threestudio_rf.core.random import generator
from threestudio_rf.export.mesh import Mesh
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.background import EnvironmentBackground, SolidBackground
from threestudio_rf.scenes.base import Scene, Surface
from threestudio_rf.scenes.field import Bands, HashGridField
from threestudio_rf.scenes.hashgrid import make_encoding
from threestudio_rf.scenes.image import BOUNDS, INITS, ORDERS, PICTURES, ImageScene
from threestudio_rf.scenes.mesh import MeshScene
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.scenes.shade import LAWS, Shading
from threestudio_rf.trainer.ranks import local_rank


def pick_device(name: str) -> torch.device:
    """The device a run uses, of several processes on a machine each its own; UserError for a CUDA device that is not
    there or does not compute, a notice where auto finds none."""
    if name == "auto" and not torch.cuda.is_available():
        LOG.info("no CUDA device: running on the CPU")
        return torch.device("cpu")
    device = torch.device("cuda" if name == "auto" else name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if device.index is None and local_rank():
            device = torch.device("cuda", local_rank())
        if (device.index or 0) >= count:
            raise UserError(f"device={device}: this machine shows {count} CUDA devices; use device=auto or device=cpu")
        fault = _fault(device)
        if fault and name == "auto" and os.environ.get("WORLD_SIZE", "1") == "1":
            LOG.warning("%s cannot be used (%s): running on the CPU", device, fault)
            return torch.device("cpu")
        if fault:
            raise UserError(f"device={device}: it cannot be used ({fault}); use device=auto or device=cpu")
    return device


def _fault(device: torch.device) -> str:
    """Why a CUDA device does not compute (too old for this torch, taken by another program), in one line; "" if it
    does."""
    try:
        torch.ones(8, device=device).add_(1).sum().item()
    except (RuntimeError, AssertionError) as error:
        return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
    return ""


def _solid(config: BackgroundConfig, seed: int) -> nn.Module:
    red, green, blue = config.rgb
    return SolidBackground((red, green, blue))


def _environment(config: BackgroundConfig, seed: int) -> nn.Module:
    return EnvironmentBackground(generator=generator(seed, 0, "background"))


BACKGROUNDS: dict[str, Callable[[BackgroundConfig, int], nn.Module]] = {"solid": _solid, "environment": _environment}


def _field(config: SceneConfig, seed: int, device: torch.device) -> HashGridField:
    grid = config.encoding
    encoding, reason = make_encoding(
        grid.backend,
        levels=grid.levels,
        features=grid.features,
        log2_table=grid.log2_table,
        base=grid.base,
        growth=grid.growth,
        geometry=grid.geometry,
        half=grid.half,
        device=device,
        generator=generator(seed, 0, "encoding"),
    )
    LOG.info("%s", reason)
    joining = grid.start_level or 0, grid.start_step, grid.update_steps
    return HashGridField(
        encoding,
        out_features=grid.levels * grid.features,
        hidden=config.field.hidden,
        layers=config.field.layers,
        radius=config.radius,
        density_scale=config.field.density_scale,
        blob_density=config.field.blob_density,
        blob_radius=config.field.blob_radius,
        bf16=config.field.bf16,
        bands=None if grid.start_level is None else Bands(*joining, width=grid.features),
        generator=generator(seed, 0, "field"),
    )


def _shading(config: ShadingConfig) -> Shading | None:
    low, high = config.distance
    if config.start is None:
        return None
    return Shading(
        config.start,
        diffuse=config.diffuse,
        textureless=config.textureless,
        ambient=config.ambient,
        spread=config.spread,
        distance=(low, high),
        law=one_of(config.law, LAWS),
        soft=config.soft,
    )


def build_scene(config: SceneConfig, seed: int, device: torch.device) -> HashGridNeRF:
    """A fresh object on `device`; the same seed gives the same one."""
    renderer = config.renderer
    scene = HashGridNeRF(
        _field(config, seed, device),
        BACKGROUNDS[config.background.name](config.background, seed),
        radius=config.radius,
        samples_per_ray=renderer.samples_per_ray,
        occupancy_resolution=renderer.occupancy_resolution,
        occupancy_threshold=renderer.occupancy_threshold,
        random_background=config.background.random,
        ray_chunk=renderer.ray_chunk,
        marching=renderer.marching,
        shading=_shading(config.shading),
    )
    return scene.to(device)


def build_mesh(config: SceneConfig, seed: int, device: torch.device) -> MeshScene:
    """A fresh ball on `device`; the same seed gives the same one."""
    scene = MeshScene(
        _field(config, seed, device),
        BACKGROUNDS[config.background.name](config.background, seed),
        radius=config.radius,
        resolution=config.mesh.resolution,
        reach=config.mesh.reach,
        ball=config.mesh.ball,
        diffusion=config.mesh.diffusion,
        random_background=config.background.random,
        shading=_shading(config.shading),
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
        one_of(config.kind, PICTURES),
        generator=generator(seed, 0, "image"),
        std=config.std,
        init=one_of(config.init, INITS),
        bound=None if config.bound == "auto" else one_of(config.bound, BOUNDS[config.kind]),
        per_step=config.per_step,
        order=one_of(config.order, ORDERS),
    ).to(device)


def _nerf(config: Config, prior: Callable[[], Prior], device: torch.device) -> Scene:
    return build_scene(config.scene, config.seed, device)


def _mesh(config: Config, prior: Callable[[], Prior], device: torch.device) -> Scene:
    return build_mesh(config.scene, config.seed, device)


def _image(config: Config, prior: Callable[[], Prior], device: torch.device) -> Scene:
    return build_image(config.scene.image, prior(), config.seed, device)


@dataclass(frozen=True)
class SceneRow:
    """What the application knows of a kind of scene.

    build    a fresh one of all settings; the prior is called for only where the scene depends on it
    posed    seen by cameras from all sides; else it is pictures, the same to every camera
    banded   whether some rows of a view can be rendered alone
    latent   whether its renderings are the prior's latents already
    maps     those of `Rendering` that losses may ask for, beside rgb and opacity
    check    UserError for settings of its own that cannot work together
    start    makes a fresh one look like another scene with a surface, or like a mesh (from a file), by settings
    write    its own files of export, (scene, folder) -> paths; None: the mesh of a scene that is a `Surface`
    reads    the settings of scene, camera, learning rates, export and evaluation that it reads, as their keys begin
    """

    build: Callable[[Config, Callable[[], Prior], torch.device], Scene]
    posed: bool = True
    banded: bool = False
    latent: Callable[[Config], bool] = lambda config: False
    maps: tuple[str, ...] = ()
    check: Callable[[Config], None] = lambda config: None
    start: Callable[[Scene, Surface | Mesh, Config], None] | None = None
    write: Callable[[Scene, Path], list[Path]] | None = None
    reads: tuple[str, ...] = ("scene.", "camera.", "optim.lr_", "export.", "evaluate.")


SHOWN: tuple[str, ...] = ("scene.radius", "scene.background.", "scene.shading.", "camera.", "evaluate.size")
SHOWN += ("optim.lr_encoding", "optim.lr_networks", "optim.lr_background", "scene.encoding.")
NERF: tuple[str, ...] = (*SHOWN, "scene.field.", "scene.renderer.", "export.")
MESH: tuple[str, ...] = (*SHOWN, "scene.mesh.", "optim.lr_geometry")
MESH += tuple(f"scene.field.{name}" for name in ("hidden", "layers", "bf16"))
MESH += tuple(f"export.{name}" for name in ("resolution", "formats", "faces", "texture", "material", "up", "scale"))
SCENES: dict[str, SceneRow] = {
    "nerf": SceneRow(
        _nerf,
        banded=HashGridNeRF.by_rows,
        maps=("orientation", "z_variance", "border", "convex"),
        check=check_memory,
        reads=NERF,
    ),
    "image": SceneRow(
        _image,
        posed=False,
        latent=lambda config: config.scene.image.kind == "latent",
        check=check_image,
        reads=("scene.image.", "optim.lr_image"),
    ),
    "mesh": SceneRow(
        _mesh,
        maps=("orientation", "border", "laplacian", "normal_consistency", "convex"),
        check=check_memory,
        start=start_mesh,
        reads=MESH,
    ),
}
"""Every kind of scene by `scene.name`."""


def build_any(config: Config, prior: Callable[[], Prior], device: torch.device) -> Scene:
    """The fresh scene that `scene.name` says."""
    return SCENES[config.scene.name].build(config, prior, device)
