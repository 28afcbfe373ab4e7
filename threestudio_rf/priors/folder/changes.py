"""Changes of a prior's weights as they are loaded: LoRA files, and the difference of two networks.

    W <- W + scale (alpha / r) B A            a LoRA of rank r
    W <- W + scale (W_to - W_from)            a difference

Both are merged in float32. Nothing is left of them but the sum, so a twin or a number format of the weights comes on
top, and `predict` costs what it did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.hub import locate
from threestudio_rf.priors.folder.load import wanted_shapes, weight_files
from threestudio_rf.priors.folder.lora import (
    Lora,
    Row,
    fetched,
    lora_file,
    network_class,
    parts_of,
    read_lora,
    row_of,
)
from threestudio_rf.priors.folder.names import present_name

NETWORKS = ("unet", "transformer")


@dataclass(frozen=True)
class Delta:
    """The difference of the networks of two folders or repositories, `to` less `base`, and its factor."""

    to: str
    base: str
    scale: float = 1.0


class Stored(NamedTuple):
    """A weight in a file."""

    file: Path
    name: str

    def read(self) -> Tensor:
        """It, in float32."""
        with safe_open(self.file, "pt") as handle:
            tensor: Tensor = handle.get_tensor(self.name)
        return tensor.float()


@dataclass(frozen=True)
class Changes:
    """What changes a prior's weights. A delta changes the network alone. `offline`: nothing is downloaded."""

    loras: tuple[Lora, ...] = ()
    delta: Delta | None = None
    offline: bool = False

    def __bool__(self) -> bool:
        return bool(self.loras) or self.delta is not None

    def check(self, folder: Path) -> None:
        """PriorError for what does not fit the prior in `folder`, before any of its weights are loaded."""
        if self.loras:
            row = row_of(folder)
            shapes = _shapes_of(folder, row)
            for lora in self.loras:
                read_lora(lora, row, shapes, offline=self.offline)
        if self.delta is not None:
            import diffusers

            part = next(name for name in NETWORKS if (folder / name).is_dir())
            self._sides(self.delta, part, wanted_shapes(getattr(diffusers, network_class(folder)), folder / part))

    def apply(self, module: nn.Module, folder: Path) -> None:
        """Change `module`, the part of a prior that was loaded from `folder`, in place; PriorError as `check`."""
        if not self:
            return
        state, part = module.state_dict(keep_vars=True), folder.name
        for lora in self.loras:
            row = row_of(folder.parent)
            pairs = read_lora(lora, row, _shapes_of(folder.parent, row), offline=self.offline).get(part, {})
            for layer, pair in pairs.items() if lora.scale else ():
                weight = state[f"{layer}.weight"]
                _add(weight, lora.scale * pair.change(tuple(weight.shape)))
        if self.delta is not None and self.delta.scale and part in NETWORKS:
            shapes = {key: tuple(value.shape) for key, value in state.items()}
            to, base = self._sides(self.delta, part, shapes)
            for key, weight in state.items():
                if weight.is_floating_point():
                    _add(weight, self.delta.scale * (to[key].read() - base[key].read()))

    def revision(self, folder: Path, parts: Collection[str]) -> str:
        """What tells the changed `parts` of the prior in `folder` from others, "" where nothing touches them: content
        and scale of each LoRA."""
        found = ""
        for lora in self.loras:
            if lora.scale and parts_of(lora, offline=self.offline, row=row_of(folder)) & set(parts):
                content = lora_file(lora.path, offline=self.offline).read_bytes()
                found += f" lora {hashlib.sha256(content).hexdigest()} {lora.scale!r}"
        return found

    def _sides(
        self, delta: Delta, part: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[dict[str, Stored], dict[str, Stored]]:
        """The weights of both sides of the delta, by today's names; PriorError where they are not those of the prior's
        network."""
        to, base = (
            _stored(setting, path, part, shapes, offline=self.offline)
            for setting, path in (("delta", delta.to), ("delta_from", delta.base))
        )
        return to, base


UNCHANGED = Changes()


def _shapes_of(folder: Path, row: Row) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every weight of the parts of a prior that a LoRA may change, by its configs."""
    import diffusers
    import transformers

    found = {row.part: wanted_shapes(getattr(diffusers, network_class(folder)), folder / row.part)}
    for name, cls in row.encoders.items():
        if (folder / name / "config.json").is_file():
            found[name] = wanted_shapes(getattr(transformers, cls), folder / name)
    return found


def _stored(
    setting: str, path: str, part: str, shapes: Mapping[str, tuple[int, ...]], *, offline: bool
) -> dict[str, Stored]:
    """The weights of the network of a folder or repository; PriorError unless their shapes are `shapes`."""

    def complete(folder: Path) -> None:
        weight_files(folder / part)

    folder = locate(path, fetched([f"{part}/*.json", f"{part}/*.safetensors"]), complete, offline=offline)
    found, got = {}, {}
    for file in weight_files(folder / part):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (a handle is no dict)
                key = present_name(name, shapes)
                found[key], got[key] = Stored(file, name), tuple(handle.get_slice(name).get_shape())
    wrong = [key for key in {**shapes, **got} if got.get(key) != shapes.get(key)]
    if wrong:
        one, other = got.get(wrong[0], "none"), shapes.get(wrong[0], "none")
        raise PriorError(
            f"prior.{setting}={path} holds another network than the prior's: {len(wrong)} weights differ, such as "
            f"{wrong[0]}: got {one}, expected {other}"
        )
    return found


def _add(weight: Tensor, change: Tensor) -> None:
    """weight += change, rounded once."""
    with torch.no_grad():
        weight.copy_(weight.float() + change.to(weight.device))
