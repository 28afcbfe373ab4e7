"""Whether kernels can run, without importing Triton.

With the environment variable TRITON_INTERPRET=1 kernels run in Python, on the CPU: slow, for tests.
"""

from __future__ import annotations

import importlib.util
import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "") == "1"
"""As Triton reads it at its import."""


def unavailable(device: torch.device | str) -> str:
    """Why no kernel can run on `device`; empty when one can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.device(device).type != "cuda" and not INTERPRETED:
        return f"triton needs CUDA and the device is {device}"
    return ""
