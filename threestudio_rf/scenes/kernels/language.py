"""Triton, which is there with every CUDA build of torch and nowhere needed: kernels import everywhere.

With the environment variable TRITON_INTERPRET=1 kernels run in Python, on the CPU: slow, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
"""As triton reads it at its import."""

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit` where there is Triton."""
    return function if triton is None else triton.jit(function)


def unavailable(device: torch.device | str) -> str:
    """Why no kernel can run on `device`; empty when one can."""
    if triton is None:
        return "triton is not installed"
    if torch.device(device).type != "cuda" and not INTERPRETED:
        return f"triton needs CUDA and the device is {device}"
    return ""


def on(device: torch.device) -> AbstractContextManager[Any]:
    """The device that kernels are launched on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def blocks(count: int, size: int) -> int:
    """Programs that it takes for `count` items; at least one, because a launch of none is refused."""
    return max(-(-count // size), 1)
