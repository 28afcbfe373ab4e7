"""Triton, which is there with every CUDA build of torch and nowhere needed: kernels import everywhere.

Only what runs a kernel imports them, because Triton itself takes a while.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["blocks", "jit", "on", "tl"]

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit` where there is Triton."""
    return function if triton is None else triton.jit(function)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """The device that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def blocks(count: int, size: int) -> int:
    """Programs that it takes for `count` items; at least one, because a launch of none is refused."""
    return max(-(-count // size), 1)
