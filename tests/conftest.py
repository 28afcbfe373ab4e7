"""What every test stands on: quiet offline libraries, an empty model cache, two threads (one in each of two processes,
`-n 2`), GPU tests where one is."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

_cache = tempfile.TemporaryDirectory(prefix="hf_home_")
os.environ |= {
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _cache.name,
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(THREADS)
os.fsync = lambda handle: None  # what a test writes need not outlive a loss of power; the disk would be waited for
gc.set_threshold(50_000, 20, 20)


SLOW = ["test_docs.py", "tiny/test_golden.py", "test_golden.py", "edit/test_method.py", "priors/test_adapters.py"]
SLOW += ["test_package.py", "app/test_layers.py", "priors/test_changes.py", "edit/test_invert.py", "app/test_run.py"]
SLOW += ["tiny/test_conditioning.py", "app/test_folders.py", "tiny/test_training.py", "app/test_python.py"]
SLOW += ["app/test_kill.py", "test_examples.py", "app/test_grid.py", "app/test_mesh_lift.py", "tiny/test_fit.py"]
"""The files of ten seconds and more, which come first so that both processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = {here / name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(SLOW)))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """What is imported and collected stays: the collector need not go through it again in every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def processes() -> Any:
    """Processes of their own that begin with everything imported, once for all of them: `processes.Process(...)`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["threestudio_rf.app.cli.main"])
    return context


@pytest.fixture
def own_tables() -> Iterator[None]:
    """For code that puts a row of its own into the tables of losses: no other test sees it."""
    from threestudio_rf.distill import combine, method, noise

    tables: list[dict[str, Any]] = [combine.COMBINERS, method.METHODS, noise.SOURCES]
    kept = [dict(table) for table in tables]
    yield
    for table, rows in zip(tables, kept, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a kind of prior with random weights, built when it is first asked for."""
    from folders import build

    root = tmp_path_factory.mktemp("adapters")
    return cache(lambda kind: build(kind, root / kind))
