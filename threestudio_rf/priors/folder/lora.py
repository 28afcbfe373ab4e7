"""LoRA files (Hu et al. 2021, arXiv 2106.09685): where they are, and what they do to the parts of a prior.

A file is read by diffusers' loader of the prior's pipeline, which knows the spellings of other trainers. What is no
LoRA, or one of another network, raises `PriorError` with one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.hub import REPOSITORY, from_hub, locate
from threestudio_rf.priors.folder.layout import class_of
from threestudio_rf.priors.folder.load import check_file, in_one_line, quiet

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PAIR = re.compile(r"(.+)\.lora_(A|B)\.weight")
WORDS = ("lora", "alpha")
HALVES = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
"""How trainers name the two matrices of a layer."""
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Shape of every weight by its name, by part."""


class Row(NamedTuple):
    """How LoRAs of a network are read: the part it is, the pipeline of diffusers whose loader knows its files, and the
    text encoders that these may change, with their classes of transformers."""

    part: str
    pipeline: str
    encoders: dict[str, str]


PROJECTED = "CLIPTextModelWithProjection"
ROWS = {
    "UNet2DConditionModel": Row("unet", "StableDiffusionPipeline", {"text_encoder": "CLIPTextModel"}),
    "SD3Transformer2DModel": Row(
        "transformer", "StableDiffusion3Pipeline", {"text_encoder": PROJECTED, "text_encoder_2": PROJECTED}
    ),
    "SanaTransformer2DModel": Row("transformer", "SanaPipeline", {}),
    "Flux2Transformer2DModel": Row("transformer", "Flux2KleinPipeline", {}),
    "ZImageTransformer2DModel": Row("transformer", "ZImagePipeline", {}),
    "QwenImageTransformer2DModel": Row("transformer", "QwenImagePipeline", {}),
    "ChromaTransformer2DModel": Row("transformer", "ChromaPipeline", {}),
    "Lumina2Transformer2DModel": Row("transformer", "Lumina2Pipeline", {}),
    "PRXTransformer2DModel": Row("transformer", "PRXPipeline", {}),
}
"""By the class of a prior's network. What has no row has no loader of LoRAs in diffusers."""
XL = Row("unet", "StableDiffusionXLPipeline", {"text_encoder": "CLIPTextModel", "text_encoder_2": PROJECTED})


def network_class(folder: Path) -> str:
    """The class of the network of the prior in `folder`, "" where nothing tells it; older UNets do not say theirs."""
    if (folder / "unet/config.json").is_file():
        return class_of(folder / "unet") or "UNet2DConditionModel"
    return (class_of(folder / "transformer") or "") if (folder / "transformer/config.json").is_file() else ""


def row_of(folder: Path) -> Row:
    """The row of the prior in `folder`; PriorError where diffusers loads no LoRA into its network."""
    cls = network_class(folder)
    if cls == "UNet2DConditionModel" and (folder / "text_encoder_2/config.json").is_file():
        return XL
    if cls not in ROWS:
        raise PriorError(f"prior.lora: diffusers has no loader for a {cls or 'network of this kind'}")
    return ROWS[cls]


@dataclass(frozen=True)
class Lora:
    """A LoRA: a file, a folder, owner/name or owner/name/file, and the factor of its change."""

    path: str
    scale: float = 1.0


class Pair(NamedTuple):
    """What a LoRA of rank r does to one weight: factor B A, with factor alpha / r."""

    a: Tensor
    b: Tensor
    factor: float

    def change(self, shape: tuple[int, ...]) -> Tensor:
        """factor B A in float32, in the shape of the weight: (out, in), or that of a convolution."""
        return self.factor * (self.b.flatten(1).float() @ self.a.flatten(1).float()).view(shape)


def parse_loras(text: str) -> tuple[Lora, ...]:
    """`path[:scale]`, several with commas; PriorError for an empty entry."""
    found = []
    for entry in (part.strip() for part in text.split(",")) if text.strip() else ():
        path, colon, number = entry.rpartition(":")
        try:
            lora = Lora(path, float(number)) if colon else Lora(entry)
        except ValueError:
            lora = Lora(entry)
        if not lora.path or not math.isfinite(lora.scale):
            raise PriorError(f"prior.lora={text}: got {entry!r}, expected <file or owner/name>[:scale]")
        found.append(lora)
    return tuple(found)


def lora_file(path: str, *, offline: bool = False) -> Path:
    """The weights of a LoRA from a file, a folder, owner/name or owner/name/file; PriorError where there are none."""
    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix != ".safetensors":
            raise PriorError(f"prior.lora={path}: expected safetensors; pickled weights are never read")
        check_file(local)
        return local
    owner, name, *inner = [*path.split("/"), "", ""]
    repository, file = f"{owner}/{name}", "/".join(inner).strip("/")
    if not local.is_dir() and not REPOSITORY.fullmatch(repository):
        raise PriorError(f"prior.lora={path}: no such file; to download write owner/name")

    def complete(folder: Path) -> None:
        _in_folder(folder, file)

    if file and not local.is_dir():
        return _in_folder(from_hub(repository, fetched([file]), complete, offline=offline), file)
    file = ""
    return _in_folder(locate(path, fetched([*FILES, "*lora*.safetensors"]), complete, offline=offline))


def fetched(patterns: list[str]) -> Callable[[str, bool], Path]:
    """What `hub.locate` asks for the files of a repository that fit `patterns`."""

    def fetch(repository: str, local_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=local_only))

    return fetch


def _in_folder(folder: Path, file: str = "") -> Path:
    """The one LoRA of a folder; PriorError for a whole prior, for none and for several."""
    if (folder / "model_index.json").is_file():
        raise PriorError(f"prior.lora={folder} is a whole prior; for the difference of two write prior.delta")
    named = [folder / name for name in ([file] if file else FILES) if (folder / name).is_file()]
    found = named[:1] if named or file else sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:6]) or f"no {file or 'safetensors'}"
        raise PriorError(f"prior.lora={folder} holds {names}, expected one file of weights; name it in full")
    check_file(found[0])
    return found[0]


def read_lora(lora: Lora, row: Row, shapes: Shapes, *, offline: bool = False) -> dict[str, dict[str, Pair]]:
    """What a LoRA does, by part and by the name of the layer, compared with the `shapes` of the parts that it may
    change; PriorError for half a LoRA, unequal ranks, unknown keys and weights of other sizes."""
    state, alphas, metadata = _loaded(lora, row, offline)
    halves: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in state.items():
        part, _, inner = key.partition(".")
        match = PAIR.fullmatch(_renamed(inner, network=part == row.part))
        if part not in shapes or match is None:
            raise _refused(lora, f"unknown key {key}, expected layers of {', '.join(shapes)}")
        layer, side = match.groups()
        known = shapes[part]
        layer = layer if f"{layer}.weight" in known else layer.removeprefix("text_model.")
        if f"{layer}.weight" not in known:
            raise _refused(lora, f"the prior has no layer {part}.{layer}: it was made for another model")
        halves.setdefault(part, {}).setdefault(layer, {})[side] = tensor
    found: dict[str, dict[str, Pair]] = {}
    for part, layers in halves.items():
        for layer, sides in layers.items():
            name = f"{part}.{layer}"
            if len(sides) < 2:
                raise _refused(lora, f"half a LoRA: {name} has no lora_{'B' if 'A' in sides else 'A'}")
            _check(lora, name, sides["A"], sides["B"], shapes[part][f"{layer}.weight"])
            rank = sides["A"].shape[0]
            factor = _alpha(part, layer, rank, alphas, metadata) / rank
            found.setdefault(part, {})[layer] = Pair(sides["A"], sides["B"], factor)
    return found


def parts_of(lora: Lora, *, offline: bool = False, row: Row) -> set[str]:
    """The parts that a LoRA changes."""
    return {key.partition(".")[0] for key in _loaded(lora, row, offline)[0]}


def _loaded(lora: Lora, row: Row, offline: bool) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Any]]:
    """Weights, alphas and metadata by diffusers' loader, every key beginning with its part."""
    import diffusers

    file = lora_file(lora.path, offline=offline)
    with safe_open(file, "pt") as handle:
        keys = set(handle.keys())
    foreign = sorted(key for key in keys if not any(word in key for word in WORDS))
    if foreign:
        raise _refused(lora, f"{foreign[0]} is no weight of a LoRA; whole networks go into prior.path or prior.delta")
    _check_halves(lora, keys)
    try:
        with quiet():
            given = {"weight_name": file.name, "local_files_only": True, "use_safetensors": True}
            loader = getattr(diffusers, row.pipeline).lora_state_dict
            found = loader(str(file.parent), return_lora_metadata=True, **given)
    except Exception as error:  # the library raises whatever unknown keys lead to
        raise _refused(lora, f"cannot be read: {in_one_line(error)}") from None
    state, alphas, metadata = (found[0], found[1] if len(found) == 3 else None, found[-1])
    if not state:
        raise _refused(lora, "no weights")
    for key, tensor in state.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise _refused(lora, f"{key} is not finite, or a whole number: the file is damaged")
    return state, {_layer(key, row.part): float(value) for key, value in (alphas or {}).items()}, metadata or {}


def _check_halves(lora: Lora, keys: set[str]) -> None:
    """PriorError for a matrix of a layer without its partner, before a loader stumbles over it."""
    for one, other in (*HALVES, *(pair[::-1] for pair in HALVES)):
        alone = sorted(key for key in keys if one in key and key.replace(one, other) not in keys)
        if alone:
            raise _refused(lora, f"half a LoRA: {alone[0]} has no {other} ({len(alone)} such layers)")


def _layer(alpha: str, network: str) -> str:
    """The layer, with its part, that a loader's name of an alpha speaks of: the layer's own or that of a half."""
    part, _, inner = alpha.removesuffix(".alpha").partition(".")
    match = PAIR.fullmatch(_renamed(inner, network=part == network))
    return f"{part}.{(match.group(1) if match else inner).removeprefix('text_model.')}"


def _refused(lora: Lora, why: str) -> PriorError:
    return PriorError(f"prior.lora={lora.path}: {why}")


def _renamed(key: str, *, network: bool) -> str:
    """A key of older diffusers as peft spells it."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    if PAIR.fullmatch(key):
        return key
    one: dict[str, Any] = {key: None}
    try:
        found = (
            convert_unet_state_dict_to_peft(one)
            if network
            else convert_state_dict_to_peft(convert_state_dict_to_diffusers(one))
        )
    except (ValueError, KeyError):
        return key
    return str(next(iter(found)))


def _check(lora: Lora, name: str, a: Tensor, b: Tensor, wanted: tuple[int, ...]) -> None:
    """PriorError unless B A is of the shape of the weight."""
    shown = f"{name}: A {tuple(a.shape)}, B {tuple(b.shape)}"
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[1]:
        raise _refused(lora, f"{shown} are of different ranks")
    if b.shape[0] != wanted[0] or tuple(a.shape[1:]) != tuple(wanted[1:]) or b[0].numel() != b.shape[1]:
        raise _refused(lora, f"{shown} do not fit the prior's weight {wanted}: it was made for another model")


def _alpha(part: str, layer: str, rank: int, alphas: Mapping[str, float], metadata: Mapping[str, Any]) -> float:
    """alpha of one layer: the file's own, that of its metadata, or the rank."""
    if f"{part}.{layer}" in alphas:
        return alphas[f"{part}.{layer}"]
    pattern = metadata.get(f"{part}.alpha_pattern") or {}
    alpha = float(pattern.get(layer, metadata.get(f"{part}.lora_alpha", rank)))
    return alpha * math.sqrt(rank) if metadata.get(f"{part}.use_rslora") else alpha
