"""A third kind of scene, a cloud of isotropic Gaussians drawn by plain torch, and its row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import trimesh
from torch import Generator, nn

from threestudio_rf.app.build.scene import SceneRow
from threestudio_rf.app.settings.config import Config
from threestudio_rf.core.random import generator
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera


class Cloud(Scene):
    """`count` Gaussians before grey, drawn as their largest density on each ray, blended from near to far."""

    def __init__(self, count: int, radius: float, draws: Generator) -> None:
        super().__init__()
        self.radius, std, opacity = radius, 0.2 * radius, 0.6
        self.means = nn.Parameter(0.4 * radius * torch.randn(count, 3, generator=draws))
        self.shapes = nn.Parameter(torch.tensor([std, opacity]).log().repeat(count, 1))
        self.colours = nn.Parameter(0.1 * torch.randn(count, 3, generator=draws))

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        origins, directions = (x[..., None, :] for x in camera.rays())
        near = (self.means - camera.position[:, None]).norm(dim=-1).argsort(dim=1)
        towards = self.means[near][:, None, None] - origins
        along = (towards * directions).sum(dim=-1)
        aside = towards.square().sum(dim=-1) - along.square()
        std, opacity = self.shapes[:, 0].exp()[near], self.shapes[:, 1].clamp(max=0).exp()[near]
        alpha = opacity[:, None, None] * torch.exp(-aside / (2 * std[:, None, None].square())) * (along > 0)
        passed = torch.cumprod(torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha], -1), -1)
        weights = alpha * passed[..., :-1]
        rgb = (weights[..., None] * self.colours.sigmoid()[near][:, None, None]).sum(dim=-2) + 0.5 * passed[..., -1:]
        return Rendering(rgb.movedim(-1, 1), 1 - passed[..., -1][:, None], (weights * along).sum(dim=-1)[:, None])

    def after_step(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        with torch.no_grad():
            self.means.clamp_(-self.radius, self.radius)


def build(config: Config, prior: Callable[[], Prior], device: torch.device) -> Scene:
    return Cloud(64, config.scene.radius, generator(config.seed, 0, "cloud")).to(device)


def write(scene: Scene, folder: Path) -> list[Path]:
    assert isinstance(scene, Cloud)
    folder.mkdir(parents=True, exist_ok=True)
    colours = (255 * scene.colours.detach().sigmoid()).byte().numpy()
    trimesh.PointCloud(scene.means.detach().numpy(), colours).export(folder / "points.ply")
    return [folder / "points.ply"]


ROW = SceneRow(build, write=write)
