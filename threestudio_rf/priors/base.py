"""What a frozen prior is to the rest of the project, and the batched call that losses and editors see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import Schedule
from threestudio_rf.core.model import Model
from threestudio_rf.priors.sampling.pipeline import Pipeline

POSE = "pose"
"""The key under which a condition holds azimuth and elevation (N, 2) in degrees, for priors that hear the camera."""


class PriorError(ValueError):
    """A prior that cannot be used as asked: folder, weights, licence, network. The text is meant for the user."""


@dataclass(frozen=True)
class Condition:
    """What a prior makes of N prompts: tensors of leading dimension N, opaque to everybody but the prior."""

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(tensor) for tensor in self.tensors.values()}) != 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"condition: got {shapes}, expected the same leading dimension")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def select(self, index: Tensor | list[int]) -> Condition:
        """The prompts of the given indices, in that order; an index may occur more than once."""
        index = torch.as_tensor(index, dtype=torch.long)
        return Condition({name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()})

    def require(self, names: Sequence[str], n: int) -> None:
        """ValueError unless it holds n prompts with the tensors of these names."""
        if len(self) != n or not set(names) <= set(self.tensors):
            got = f"{len(self)} prompts with {', '.join(sorted(self.tensors))}"
            raise ValueError(f"condition: got {got}, expected {n} with {', '.join(names)}")

    def expand(self, n: int) -> Condition:
        """This condition for a batch of n: one prompt serves all, n prompts one sample each. ValueError otherwise."""
        if len(self) == n:
            return self
        if len(self) != 1:
            raise ValueError(f"condition: got {len(self)} prompts, expected 1 or {n}")
        return Condition({name: tensor.expand(n, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def posed(self, azimuth: Tensor, elevation: Tensor) -> Condition:
        """This condition, of one prompt or B, seen by cameras (B,). ValueError for a prior that hears no camera."""
        if POSE not in self.tensors:
            raise ValueError(f"condition: got {sorted(self.tensors)}, expected one that hears the camera ({POSE})")
        pose = torch.stack((azimuth, elevation), dim=1).to(self.tensors[POSE])
        return Condition(self.expand(len(azimuth)).tensors | {POSE: pose})

    def to(self, device: torch.device | str) -> Condition:
        """A copy of the tensors on `device`."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Prompts of all conditions one after the other. ValueError when they hold different tensors."""
        names = [sorted(condition.tensors) for condition in conditions]
        if not names or any(name != names[0] for name in names):
            raise ValueError(f"conditions: got tensors {names}, expected the same names, at least one condition")
        return Condition({name: torch.cat([c.tensors[name] for c in conditions]) for name in names[0]})


class Prior(Protocol):
    """A frozen network. `t` is (B,) in [0, 1], 0 clean, 1 noise; nothing outside sees labels, signs, scales, dtypes."""

    kind: Kind
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    name: str
    licence: str
    time_shift: float
    """The shift of its own sampler's times, 1 for none."""
    pipeline: Pipeline
    """How it is sampled by itself."""

    def between(self) -> Prior:
        """The prior that hears times between the entries of its table as they are; itself where there is none."""
        ...

    def embed(self, prompts: list[str]) -> Condition:
        """The condition of the prompts, in their order; what it holds is the adapter's own affair."""
        ...

    def fits(self, text: str) -> bool:
        """Whether the prior reads `text` to its end."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, C, h, w), (B,), condition of length B -> (B, C, h, w) of `kind` in our sign, float32, no gradient."""
        ...

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> latents, differentiable, not clamped; the mode unless a generator is given."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W) in [0, 1]."""
        ...


def bind(prior: Prior, conditions: Mapping[str, Condition]) -> Model:
    """`prior` with its conditions by role ("cond", "uncond", ...); a condition holds 1 prompt or one per sample.

    All roles are asked in one batched network call, ordered [role 0 B | role 1 B | ...]. The model raises ValueError
    for t of another shape and for unknown or no roles.
    """
    known = dict(conditions)

    def predict(x_t: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        n, times = len(x_t), len(roles)
        if t.shape != (n,):
            raise ValueError(f"t: got shape {tuple(t.shape)}, expected ({n},)")
        if not roles or not set(roles) <= set(known):
            raise ValueError(f"roles: got {list(roles)}, expected some of {sorted(known)}")
        parts = [known[role].expand(n) for role in roles]
        if times == 1:
            return {roles[0]: prior.predict(x_t, t, parts[0])}
        out = prior.predict(x_t.repeat(times, 1, 1, 1), t.repeat(times), Condition.cat(parts))
        return dict(zip(roles, out.split(n), strict=True))

    return Model(predict, prior.kind, prior.schedule)
