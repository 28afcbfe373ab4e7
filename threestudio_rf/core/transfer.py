"""Numbers that are drawn or kept on the CPU on their way to a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(values: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """`values` on `device`, in `dtype` if one is given. From the CPU to CUDA through pinned memory: a copy from other
    memory makes the program wait until the device has done all that it was told before."""
    values = values if dtype is None else values.to(dtype)
    if torch.device(device).type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
