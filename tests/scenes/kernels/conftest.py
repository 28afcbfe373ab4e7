"""Kernels run compiled where there is CUDA, interpreted elsewhere; without Triton their tests say how to get it."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernels" in item.path.parts:
            item.add_marker(pytest.mark.gpu if CUDA else pytest.mark.kernels)


@pytest.fixture
def device() -> torch.device:
    """Where kernels run."""
    if importlib.util.find_spec("triton") is None:
        pytest.fail("triton is not installed: make test-kernels, or pip install --no-deps triton (Linux, 1 GB)")
    return torch.device("cuda" if CUDA else "cpu")
