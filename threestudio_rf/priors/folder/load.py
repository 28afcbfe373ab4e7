"""A prior's folder in the layout of diffusers: whether it is what it should be, and loading one part of it.

Broken weights load in silence: a key missing from a file becomes random numbers (transformers) or a tensor without
storage (diffusers), NaN weights give NaN pictures. So every part is compared with its files before it is used, and
everything that is wrong raises `PriorError` with a text meant for the user. Only safetensors are read, code that comes
with a folder never runs.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import (
    ENCODERS,
    VAES,
    Table,
    class_of,
    expected_type,
    fits,
    is_whole,
    read_json,
)
from threestudio_rf.priors.folder.names import present_name

POINTER = b"version https://git-lfs.github.com/spec/"
SHARD = re.compile(r"-\d{5}-of-\d{5}")


def usable_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, but float32 for float16 on a CPU, where it is slower; with a warning."""
    if device.type == "cpu" and dtype == torch.float16:
        warnings.warn("float16 is slower than float32 on a CPU; float32 is used (bfloat16 on request)", stacklevel=3)
        return torch.float32
    return dtype


def variant_files(folder: Path) -> dict[str, list[Path]]:
    """The safetensors of one part by the variant in their names, "" for the plain ones."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        name = SHARD.sub("", file.name)
        found.setdefault(".".join(name.split(".")[1:-1]), []).append(file)
    return found


def variant_of(folder: Path, variant: str | None) -> str | None:
    """The variant to read: `variant` where the part has files of it, None (plain files) where it has those, as
    repositories keep some parts in one form only, else the only variant there. PriorError where there are several."""
    found = variant_files(folder)
    if variant and variant in found:
        return variant
    if "" in found or not found:
        return None
    if len(found) > 1:
        raise PriorError(f"{folder} holds the variants {', '.join(found)}: choose one by prior.variant=")
    return next(iter(found))


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors of one part, each opened once. PriorError for none, pickled, empty, pointer or truncated ones."""
    files = variant_files(folder).get(variant_of(folder, variant) or "", [])
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
        raise PriorError(
            f"{file} ({file.stat().st_size if file.is_file() else 0} bytes) is empty, truncated or damaged: {error}"
        ) from None


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

    found: type = PreTrainedModel
    return found


def load_part(
    cls: Any, folder: Path, *, dtype: torch.dtype, variant: str | None = None, quantization: Any = None
) -> Any:
    """One module of diffusers or transformers from its folder: frozen, in eval mode, on the CPU, whole.

    `quantization` is a configuration of diffusers; some of its backends leave the module on the GPU. PriorError names
    the part and the first three weights that are missing, not finite, no fractions or of another shape.
    """
    files = weight_files(folder, variant)
    check_config(cls, folder / "config.json", weights=len(stored_types(files)))
    extra = {} if quantization is None else {"quantization_config": quantization}
    if isinstance(read_json(folder / "config.json").get("sample_size"), list):
        extra |= {"sample_size": Table(folder / "config.json").side("sample_size")}
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
    except Exception as error:  # these libraries raise whatever a wrong config.json leads to
        raise PriorError(f"{folder}: {_why(cls, folder, files, error)}") from None
    missing, broken = faults(module, files) if quantization is None else file_faults(cls, folder, files)
    whole = [] if "quantization_config" in read_json(folder / "config.json") else whole_numbers(module, files)
    for names, reason in (
        (missing, "keys missing in the weights"),
        (broken, "weights that are not finite"),
        (whole, "weights that are whole numbers"),
    ):
        if names:
            raise PriorError(f"{folder}: {len(names)} {reason}, such as {', '.join(names[:3])}; the files are damaged")
    return module.eval().requires_grad_(False)


def stored_types(files: list[Path]) -> dict[str, str]:
    """The number format ("F32", "I64") of every weight in `files`, by its stored name."""
    found: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as handle:
            found |= {key: handle.get_slice(key).get_dtype() for key in handle.keys()}  # noqa: SIM118
    return found


def whole_numbers(module: nn.Module, files: list[Path]) -> list[str]:
    """Stored weights that are whole numbers or truth values where the part has fractions."""
    parameters = dict(module.named_parameters())
    found = [name for name, kind in stored_types(files).items() if kind[0] in "IU" or kind == "BOOL"]
    return [name for name in found if present_name(name, parameters) in parameters]


def _why(cls: Any, folder: Path, files: list[Path], error: BaseException) -> str:
    """Why a part did not load, in one line."""
    try:
        wrong = misshapen(cls, folder, files)
    except Exception as other:  # the same config.json, without weights
        return f"config.json cannot be used: {in_one_line(other)}"
    fault = f"weights do not fit config.json: {'; '.join(wrong[:3])}"
    return fault if wrong else f"cannot be loaded: {in_one_line(error)}"


def in_one_line(error: BaseException) -> str:
    """What a library says, without names of its exceptions."""
    plain = re.sub(r"<class '(\w+)'>", r"\1", " ".join(str(error).split()))
    return re.sub(r"\b\w*(Error|Exception)\b:?\s*", "", plain)[:300] or "no reason is given"


def check_parts(
    folder: Path, parts: Collection[str], classes: Mapping[str, str], variant: str | None, vaes: Collection[str] = VAES
) -> None:
    """Look at every part without loading it; its class is in `classes` (part -> class of diffusers or transformers), a
    VAE is one of `vaes`. PriorError for what is missing, broken or of another class. The only variant is told."""
    for name in parts:
        weight_files(folder / name, variant)
        check_class(folder / name, (classes[name],) if name in classes else vaes)
    only = {taken for name in parts if (taken := variant_of(folder / name, variant)) and taken != variant}
    if only:
        warnings.warn(f"{folder} holds the variant {', '.join(sorted(only))} alone: it is used", stacklevel=4)


def check_class(folder: Path, expected: Collection[str]) -> None:
    """PriorError where a part says it is of another class than the expected ones; older files may say nothing."""
    config = read_json(folder / "config.json")
    if any(name in ENCODERS for name in expected):
        kind = config.get("model_type", "clip")
        if not isinstance(kind, str) or not kind.startswith(tuple(ENCODERS[name] for name in expected)):
            raise PriorError(f"{folder} holds a text encoder of the kind {kind}, expected {' or '.join(expected)}")
    elif (found := class_of(folder)) and found not in expected:
        raise PriorError(f"{folder} holds a {found}, expected {' or '.join(expected)}")


def check_config(cls: Any, file: Path, *, weights: int) -> None:
    """PriorError for an entry of config.json that is not of the type that `cls` declares, is negative, or counts more
    layers than there are `weights`."""
    table = Table(file)
    foreign = issubclass(cls, _pretrained_model())
    made = cls.config_class if foreign else cls
    declared = inspect.signature(made.__init__).parameters
    for key, value in table.content.items():
        if key not in declared or key.startswith("_"):
            continue
        kind = declared[key].annotation
        if key == "sample_size" and isinstance(value, list):
            table.side(key)
        elif not fits(value, kind) and not (value is None and declared[key].default is None):
            raise table.refuse(key, expected_type(kind))
        if value is None and isinstance(declared[key].default, float):  # declared as one that may be null, used as none
            raise table.refuse(key, "a number")
        for number in value if isinstance(value, list) else [value]:
            if is_whole(number) and number < 0 and not key.endswith("_id"):
                raise table.refuse(key, "no negative number")
            if is_whole(number) and "layers" in key and number > weights:
                raise table.refuse(key, f"at most {weights}, the number of weights in the files")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of the libraries while parts load; what is wrong is said by `load_part`."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    levels = diffusers_log.get_verbosity(), transformers_log.get_verbosity()
    bars = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    diffusers_log.set_verbosity(50)
    transformers_log.set_verbosity(50)
    for log in bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_log.set_verbosity(levels[0])
        transformers_log.set_verbosity(levels[1])
        for log in bars:
            log.enable_progress_bar()
