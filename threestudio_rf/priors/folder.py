"""A prior's folder in the layout of diffusers: whether it is what it should be, and loading one part of it.

Broken weights load in silence: a key missing from a file becomes random numbers (transformers) or a tensor without
storage (diffusers), NaN weights give NaN pictures. So every part is compared with its files before it is used, and
everything that is wrong raises `PriorError` with a text meant for the user. Only safetensors are read, code that comes
with a folder never runs.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from threestudio_rf.priors.base import PriorError

POINTER = b"version https://git-lfs.github.com/spec/"
KINDS = {"SD3Transformer2DModel": "sd3", "UNet2DConditionModel": "sd"}
ADVICE = {"sd3": "use prior=sd3", "sd": "use prior=sd (prior=instaflow for a rectified flow)"}
OLDER = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""Names of attention weights in files of the first diffusers versions, which its loader renames."""


def usable_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, but float32 for float16 on a CPU, where it is slower; with a warning."""
    if device.type == "cpu" and dtype == torch.float16:
        warnings.warn("float16 is slower than float32 on a CPU; float32 is used (bfloat16 on request)", stacklevel=3)
        return torch.float32
    return dtype


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise PriorError(f"{file} is missing: the folder is not a whole diffusers folder") from None
    except (OSError, ValueError) as error:
        raise PriorError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise PriorError(f"{file}: got {type(content).__name__}, expected a table of names and values")
    return content


def kind_of(index: dict[str, Any]) -> str:
    """The kind of folder ("sd", "sd3") of a model_index.json, "" when no adapter reads it.

    The network's class decides; a UNet with a second text encoder is SDXL's.
    """
    classes = [value[1] for key, value in index.items() if key in ("transformer", "unet") and isinstance(value, list)]
    kind = next((KINDS[name] for name in classes if name in KINDS), "")
    return "" if kind == "sd" and present(index, "text_encoder_2") else kind


def read_index(folder: Path, wanted: str) -> dict[str, Any]:
    """model_index.json of a folder whose network is of the kind `wanted` ("sd3"). PriorError otherwise."""
    if not (folder / "model_index.json").is_file():
        parts = sorted(entry.name for entry in folder.iterdir())[:6]
        raise PriorError(
            f"{folder} holds no model_index.json, so it is not a diffusers folder (it holds: {', '.join(parts) or '-'}"
            "); single-file checkpoints must be converted first"
        )
    index = read_json(folder / "model_index.json")
    found = kind_of(index)
    if found != wanted:
        hint = ADVICE.get(found, "no adapter of this project reads it")
        raise PriorError(f"{folder} holds a {index.get('_class_name')}, expected the kind {wanted!r}: {hint}")
    return index


def present(index: dict[str, Any], part: str) -> bool:
    """Whether the folder names this part; [null, null] means it was saved without."""
    value = index.get(part)
    return isinstance(value, list) and value[:1] != [None] and bool(value)


def variant_of(folder: Path, variant: str | None) -> str | None:
    """`variant` where the part has files of it, else None: repositories keep some parts in one form only."""
    return variant if variant and any(folder.glob(f"*.{variant}*.safetensors")) else None


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of one part, each opened once. PriorError for none, pickled, empty, pointer or truncated ones."""
    if variant := variant_of(folder, variant):
        files = sorted(folder.glob(f"*.{variant}*.safetensors"))
    else:
        files = sorted(file for file in folder.glob("*.safetensors") if file.name.count(".") == 1)
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        why = f"only pickled weights ({pickled[0]}), which are never read" if pickled else "no weights"
        raise PriorError(f"{folder} holds {why}; expected safetensors")
    for file in files:
        check_file(file)
    return files


def check_file(file: Path) -> None:
    """PriorError unless `file` is a whole safetensors file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(len(POINTER))
        if start == POINTER:
            raise PriorError(
                f"{file} ({size} bytes) is a Git LFS pointer, not weights; run `git lfs pull` in its folder"
            )
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError, EOFError) as error:
        raise PriorError(f"{file} ({_size(file)} bytes) is empty, truncated or damaged: {error}") from None


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def present_name(key: str, known: Collection[str]) -> str:
    """The name that the libraries of today give to a stored `key`: files of older ones say `text_model.` before every
    weight of a CLIPTextModel, and `query` for `to_q`. `known` are today's names."""
    if key in known:
        return key
    renamed = key.removeprefix("text_model.")
    for old, new in OLDER:
        renamed = renamed.replace(old, new)
    return renamed if renamed in known else key


def stored_names(files: list[Path], known: Collection[str]) -> set[str]:
    """Today's names of all weights in `files`."""
    keys: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as handle:
            keys |= {present_name(key, known) for key in handle.keys()}  # noqa: SIM118 (a handle is no dict)
    return keys


def faults(module: nn.Module, files: list[Path]) -> tuple[list[str], list[str]]:
    """(keys that no file holds, parameters without storage or not finite) of a loaded part. Tied weights count once."""
    state = module.state_dict(keep_vars=True)
    keys = stored_names(files, state)
    stored = {state[k].data_ptr() for k in keys & state.keys() if not state[k].is_meta}
    missing = [k for k in state if k not in keys and (state[k].is_meta or state[k].data_ptr() not in stored)]
    named = [*module.named_parameters(), *module.named_buffers()]
    broken = [n for n, p in named if p.is_meta or (p.is_floating_point() and not p.sum(dtype=torch.float32).isfinite())]
    return missing, broken


def file_faults(cls: Any, folder: Path, files: list[Path]) -> tuple[list[str], list[str]]:
    """The same as `faults`, read from the files: for parts whose weights are no longer what was stored (quantised)."""
    wanted = wanted_shapes(cls, folder)
    broken = []
    for file in files:
        with safe_open(file, "pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                tensor = handle.get_tensor(key)
                if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
                    broken.append(present_name(key, wanted))
    return sorted(wanted.keys() - stored_names(files, wanted)), broken


def wanted_shapes(cls: Any, folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that config.json asks for, without any memory."""
    with torch.device("meta"):
        if issubclass(cls, _pretrained_model()):
            module = cls(cls.config_class.from_pretrained(str(folder)))
        else:
            module = cls.from_config(cls.load_config(str(folder)))
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def misshapen(cls: Any, folder: Path, files: list[Path]) -> list[str]:
    """Weights whose shape is not the one config.json asks for, as "key: got (3,), expected (4,)"."""
    wanted = wanted_shapes(cls, folder)
    found = []
    for file in files:
        with safe_open(file, "pt") as handle:
            names = {key: present_name(key, wanted) for key in handle.keys()}  # noqa: SIM118
            shapes = {n: tuple(handle.get_slice(k).get_shape()) for k, n in names.items() if n in wanted}
        found += [f"{k}: got {s}, expected {wanted[k]}" for k, s in shapes.items() if s != wanted[k]]
    return found


def _pretrained_model() -> type:
    from transformers import PreTrainedModel

    return PreTrainedModel


def load_part(
    cls: Any, folder: Path, *, dtype: torch.dtype, variant: str | None = None, quantization: Any = None
) -> Any:
    """One module of diffusers or transformers from its folder: frozen, in eval mode, on the CPU, whole.

    `quantization` is a configuration of diffusers; some of its backends leave the module on the GPU. PriorError names
    the part and the first three weights that are missing, not finite or of another shape.
    """
    files = weight_files(folder, variant)
    read_json(folder / "config.json")
    extra = {} if quantization is None else {"quantization_config": quantization}
    try:
        with quiet():
            module = cls.from_pretrained(
                str(folder),
                dtype=dtype,
                variant=variant_of(folder, variant),
                local_files_only=True,
                use_safetensors=True,
                **extra,
            )
    except (ValueError, RuntimeError, OSError, KeyError, TypeError, ImportError) as error:
        wrong = misshapen(cls, folder, files)
        reason = f"weights do not fit config.json: {'; '.join(wrong[:3])}" if wrong else f"cannot be loaded: {error}"
        raise PriorError(f"{folder}: {reason}") from None
    missing, broken = faults(module, files) if quantization is None else file_faults(cls, folder, files)
    for names, reason in ((missing, "keys missing in the weights"), (broken, "weights that are not finite")):
        if names:
            raise PriorError(f"{folder}: {len(names)} {reason}, such as {', '.join(names[:3])}; the files are damaged")
    return module.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of the libraries while parts load; what is wrong is said by `load_part`."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    levels = diffusers_log.get_verbosity(), transformers_log.get_verbosity()
    bar = transformers_log.is_progress_bar_enabled()
    diffusers_log.set_verbosity(50)
    transformers_log.set_verbosity(50)
    transformers_log.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_log.set_verbosity(levels[0])
        transformers_log.set_verbosity(levels[1])
        if bar:
            transformers_log.enable_progress_bar()
