"""What a prior's folder says of itself in its JSON files, read by types; the shape of its latents. Nothing loads."""

from __future__ import annotations

import json
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from threestudio_rf.core.files import read_text
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.facts import FACTS

NETWORKS = ("transformer", "unet")
TINY, VAES = "AutoencoderTiny", ("AutoencoderKL", "AutoencoderTiny")
ENCODERS = {
    "CLIPTextModel": "clip",
    "CLIPTextModelWithProjection": "clip",
    "T5EncoderModel": "t5",
    "T5GemmaEncoder": "t5",
    "Gemma2Model": "gemma2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3Model": "qwen3",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
    "Qwen3VLTextModel": "qwen3_vl",
}
"""Classes of text encoders, and how the kind that their config.json names begins."""
LARGEST, WIDEST = 2**31 - 1, 2**14
"""Of whole numbers, and of the sides of pictures and latents."""
MARK = "\ufeff"
REQUIRED = object()


def read_json(file: Path) -> dict[str, Any]:
    """The table that a JSON file holds; PriorError for everything else."""
    try:
        text = read_text(file)
        content = json.loads(text.removeprefix(MARK))
    except FileNotFoundError:
        raise PriorError(f"{file} is missing: the folder is not a whole diffusers folder") from None
    except RecursionError:
        raise PriorError(f"{file} cannot be read: it is nested too deep") from None
    except UnicodeDecodeError as error:
        raise PriorError(f"{file} cannot be read: byte {error.start} is no text in UTF-8; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise PriorError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if text.startswith(MARK):
        raise PriorError(f"{file} begins with a byte order mark, which diffusers does not read; save it without one")
    if not isinstance(content, dict):
        raise PriorError(f"{file}: got {type(content).__name__}, expected a table of names and values")
    return content


class Table:
    """One JSON file whose entries are read by type: PriorError names file, key and value of what is something else.

    An entry that is not there is the default, without one an error; null is an entry like others.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.content = file, read_json(file)

    def refuse(self, key: str, expected: str) -> PriorError:
        """The error for the entry `key`."""
        shown = json.dumps(self.content.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return PriorError(f"{self.file}: {key} is {shown}, expected {expected}")

    def _entry(self, key: str, default: Any) -> Any:
        if key in self.content:
            return self.content[key]
        if default is REQUIRED:
            raise PriorError(f"{self.file} has no {key!r}")
        return default

    def whole(self, key: str, default: Any = REQUIRED, *, low: int = 1, high: int = LARGEST) -> int:
        """A whole number in low..high."""
        value = self._entry(key, default)
        if not is_whole(value) or not low <= value <= high:
            raise self.refuse(key, f"a whole number from {low} to {high}" if high < LARGEST else _at_least(low))
        return int(value)

    def side(self, key: str) -> int:
        """The side of a square: n or [n, n]."""
        value = self._entry(key, REQUIRED)
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or not all(is_whole(n) and 0 < n <= WIDEST for n in pair) or pair[0] != pair[1]:
            raise self.refuse(key, f"a whole number n of at least 1 and at most {WIDEST}, or [n, n]")
        return int(pair[0])

    def real(self, key: str, default: Any = REQUIRED, *, above: float = -math.inf) -> float:
        """A finite number greater than `above`."""
        value = self._entry(key, default)
        if not is_number(value) or value <= above:
            raise self.refuse(key, "a number" if above == -math.inf else f"a number above {above:g}")
        return float(value)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A text."""
        value = self._entry(key, default)
        if not isinstance(value, str):
            raise self.refuse(key, "a text")
        return value

    def wholes(self, key: str) -> list[int]:
        """A list of whole numbers of at least 1, not empty."""
        value = self._entry(key, REQUIRED)
        if not isinstance(value, list) or not value or not all(is_whole(n) and n > 0 for n in value):
            raise self.refuse(key, "a list of whole numbers of at least 1")
        return [int(n) for n in value]

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers; None where it is null or not there."""
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not value or not all(is_number(n) for n in value):
            raise self.refuse(key, "a list of numbers or null")
        return [float(n) for n in value]


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _at_least(low: int) -> str:
    return f"a whole number of at least {low}"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of JSON is of a declared type; a type that is not a plain one fits everything. Numbers are
    finite; diffusers declares some switches as float."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if origin in (list, tuple) or kind in (list, tuple):
        return isinstance(value, list) and all(
            not inside or any(fits(item, one) for one in inside if one is not Ellipsis) for item in value
        )
    if origin is typing.Literal:
        return value in inside
    plain = {int: is_whole(value), float: is_number(value) or isinstance(value, bool), str: isinstance(value, str)}
    plain |= {bool: isinstance(value, bool), type(None): value is None}
    return plain.get(kind, True) if isinstance(kind, type) else True


def expected_type(kind: Any) -> str:
    """A declared type in words."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    inside = [one for one in typing.get_args(kind) if one is not Ellipsis]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(expected_type(one) for one in inside)
    if typing.get_origin(kind) in (list, tuple):
        return f"a list of {', '.join(dict.fromkeys(expected_type(one) for one in inside))}"
    return words.get(kind, str(kind))


def class_of(folder: Path) -> str:
    """The class of diffusers that a part says it is, "" where it says nothing."""
    return Table(folder / "config.json").text("_class_name", "")


def kind_of(index: dict[str, Any]) -> str:
    """The prior ("sd", "sd3") that reads the folder of a model_index.json, "" for none.

    The network's class decides, of several with one network the pipeline's; a UNet with a second text encoder is
    SDXL's.
    """
    entries = [index[key] for key in NETWORKS if isinstance(index.get(key), list)]
    classes = [entry[1] for entry in entries if entry[1:]]
    for name, facts in FACTS.items():
        if facts.network not in classes or (facts.pipelines and index.get("_class_name") not in facts.pipelines):
            continue
        if facts.network == "UNet2DConditionModel":
            return "sdxl" if present(index, "text_encoder_2") else "sd"
        return name
    return ""


def advice_of(kind: str) -> str:
    """What to do with a folder of that kind."""
    if not kind:
        return "no adapter of this project reads it"
    return f"use prior={kind}{' (prior=instaflow for a rectified flow)' if kind == 'sd' else ''}"


def read_index(folder: Path, wanted: str) -> dict[str, Any]:
    """model_index.json of a folder whose network is of the kind `wanted` ("sd3"). PriorError otherwise, with what the
    folder seems to be."""
    if not (folder / "model_index.json").is_file():
        raise PriorError(f"{folder} holds no model_index.json, so it is not a diffusers folder{_seems(folder)}")
    check_files(folder)
    index = read_json(folder / "model_index.json")
    found = kind_of(index)
    if found != wanted:
        held = index.get("_class_name")
        raise PriorError(f"{folder} holds a {held}, expected the kind {wanted!r}: {advice_of(found)}")
    return index


def check_files(folder: Path) -> None:
    """PriorError for what is no file in a folder, such as a pipe, for which libraries would wait."""
    for path in folder.rglob("*"):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise PriorError(f"{path} is a pipe, socket or device, expected a file")


def _seems(folder: Path) -> str:
    """What a folder without model_index.json is, as far as its names say."""
    names = sorted(entry.name for entry in folder.iterdir())
    named = [name for name in names if "lora" in name.lower() or name.startswith("adapter_")]
    lora = [name for name in named if (folder / name).is_file()]
    inner = [name for name in names if (folder / name / "model_index.json").is_file()]
    cached = [name for name in names if name.startswith("models--")]
    if lora:
        return (
            f": {lora[0]} are LoRA weights, which change a prior and are none; give the prior's folder as prior.path "
            f"and prior.lora={folder}"
        )
    if inner:
        return f"; the folder in it, {folder / inner[0]}, is one"
    if cached:
        return f": it is a cache of the hub; give one of its folders, {folder / cached[0]}, or owner/name"
    if "config.json" in names and class_of(folder):
        return f": it holds a {class_of(folder)}, one part of one; give the folder around it"
    return f" (it holds: {', '.join(names[:6]) or '-'}); single-file checkpoints must be converted first"


def present(index: dict[str, Any], part: str) -> bool:
    """Whether the folder names this part; [null, null] means it was saved without."""
    value = index.get(part)
    return isinstance(value, list) and value[:1] != [None] and bool(value)


def snapshot_of(folder: Path) -> Path | None:
    """The snapshot in a folder models--owner--name of the hub's cache: that of its branch main, else the newest; None
    for other folders."""
    if not (folder / "snapshots").is_dir() or (folder / "model_index.json").exists():
        return None
    main = folder / "refs" / "main"
    commit = read_text(main, "replace").strip() if main.is_file() else ""
    found = [entry for entry in (folder / "snapshots").iterdir() if entry.is_dir()]
    named = [entry for entry in found if entry.name == commit]
    return max(named or found, key=lambda entry: entry.stat().st_mtime, default=None)


@dataclass(frozen=True)
class Shape:
    """What the configs say: latents (channels, size, size) natively; the network needs their sides to be multiples of
    `patch`, the VAE makes one latent of `factor` x `factor` pixels."""

    channels: int
    size: int
    patch: int
    factor: int

    def check_latents(self, x: Tensor) -> None:
        """ValueError unless x is (B, channels, h, w) with h, w multiples of `patch`."""
        self._check("latents", x, self.channels, self.patch)

    def check_image(self, x: Tensor) -> None:
        """ValueError unless x is (B, 3, H, W) with H, W multiples of factor times patch."""
        self._check("image", x, 3, self.factor * self.patch)

    @staticmethod
    def _check(name: str, x: Tensor, channels: int, multiple: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            expected = f"(B, {channels}, H, W) with H, W multiples of {multiple}"
            raise ValueError(f"{name}: got {tuple(x.shape)}, expected {expected}")


def vae_factor(folder: Path, channels: int) -> int:
    """Pixels per latent and side of a VAE's folder. PriorError unless it makes latents of `channels`."""
    config = Table(folder / "config.json")
    found = config.whole("latent_channels", 4)
    if found != channels:
        raise PriorError(f"{folder}: this VAE makes {found} latent channels, the network reads {channels}")
    for key in ("scaling_factor", "shift_factor"):
        if key == "scaling_factor" or config.content.get(key) is not None:
            config.real(key, 0.0 if key == "shift_factor" else 0.18215)
    key = "encoder_block_out_channels" if config.content.get("encoder_block_out_channels") else "block_out_channels"
    levels = config.wholes(key) if key in config.content else []
    return 1 << max(0, len(levels) - 1)
