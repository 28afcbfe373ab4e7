"""A prior of one file and one row: it knows a black and a white picture, and predicts x0 on the straight path."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from threestudio_rf.app.build.prior import PriorRow
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.facts import Facts
from threestudio_rf.priors.sampling.pipeline import Formula

FACTS = Facts("grey", "formula", "straight", multiple=4, reads=("std",))


class Grey:
    """Prompts with "white" in them mean 1, others -1; `std` is the deviation of a picture from it."""

    kind, schedule, latent_shape, time_shift = "x0", rectified_flow, (3, 4, 4), 1.0
    pipeline = Formula(rectified_flow)
    name, licence = "grey", "none"

    def __init__(self, std: float) -> None:
        self.std = std

    def embed(self, prompts: list[str]) -> Condition:
        return Condition({"mean": torch.tensor([[1.0 if "white" in prompt else -1.0] for prompt in prompts])})

    def fits(self, text: str) -> bool:
        return True

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        alpha, sigma = rectified_flow(t).like(x_t)
        mean = condition.tensors["mean"].to(x_t)[:, :, None, None]
        kept = alpha * self.std**2 / ((alpha * self.std) ** 2 + sigma**2).clamp_min(1e-12)
        return mean + kept * (x_t - alpha * mean)

    def between(self) -> Grey:
        return self

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        return 2 * torch.nn.functional.adaptive_avg_pool2d(image, 4) - 1

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents + 1) / 2).clamp(0, 1)


def build(config: PriorConfig, device: torch.device) -> Prior:
    return Grey(config.std)


ROW = PriorRow(build, FACTS)
