"""What an object is made of: every value below it by its path, so that two of them can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, Path, range)


def portrait(thing: Any, path: str = "", above: tuple[int, ...] = ()) -> dict[str, Any]:
    """Values by dotted path. Functions are their names and what they enclose; tensors their digests."""
    if isinstance(thing, PLAIN):
        return {path: thing}
    if isinstance(thing, torch.Tensor):
        data = thing.detach().cpu().contiguous().view(torch.uint8) if thing.numel() and thing.dim() else thing.detach()
        return {path: (tuple(thing.shape), hashlib.sha256(data.numpy().tobytes()).hexdigest())}
    if isinstance(thing, torch.Generator):
        return portrait(thing.get_state(), path)
    if isinstance(thing, logging.Logger):
        return {path: thing.name}
    if id(thing) in above or len(above) > 12:
        return {}
    found = {path: type(thing).__name__}
    for name, value in _parts(thing):
        found |= portrait(value, f"{path}.{name}", (*above, id(thing)))
    return found


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, list | tuple) and not hasattr(thing, "_fields"):
        yield from ((str(i), value) for i, value in enumerate(thing))
    elif isinstance(thing, tuple):
        yield from thing._asdict().items()  # type: ignore[attr-defined]
    elif isinstance(thing, types.FunctionType):
        cells = thing.__closure__ or ()
        yield "name", thing.__qualname__
        yield from zip(thing.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True)
    elif isinstance(thing, types.MethodType):
        yield from (("name", thing.__func__.__qualname__), ("self", thing.__self__))
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from ((field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing))
    elif isinstance(thing, nn.Module):
        yield from thing._parameters.items()
        yield from thing._buffers.items()
        yield from thing._modules.items()
        yield from ((name, value) for name, value in vars(thing).items() if not name.startswith("_"))
    elif not isinstance(thing, type | types.ModuleType | types.BuiltinFunctionType):
        yield from getattr(thing, "__dict__", {}).items()


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The paths whose values differ."""
    return [path for path in {**before, **after} if before.get(path, ...) != after.get(path, ...)]
