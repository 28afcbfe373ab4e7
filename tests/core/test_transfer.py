"""Numbers reach a GPU without the program waiting for it.

Seen to fail: a copy from ordinary memory; a wait for the copy; a draw that goes its own way.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from looks import LIMITS, LOOKS, TIMES
from torch import Tensor

import threestudio_rf
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.transfer import sent
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.scenes.camera import sent as of_scenes
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.trainer.lift import LiftSettings, lift
from threestudio_rf.trainer.optim import make_optimiser
from threestudio_rf.trainer.ramp import Constant


def test_from_the_cpu_to_cuda_it_goes_through_pinned_memory_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: asked.append("pinned") or x)
    real = Tensor.to
    said = lambda x, *to, **more: asked.append((*to, more)) or (x if "cuda" in str(to) else real(x, *to, **more))  # noqa: E731
    monkeypatch.setattr(Tensor, "to", said)
    sent(torch.ones(2), "cuda:1", torch.float16)
    assert asked[0] == (torch.float16, {})
    of_scenes(torch.ones(2), "cuda:1")
    assert asked[1:] == ["pinned", ("cuda:1", {"non_blocking": True})] * 2
    asked.clear()
    normal((2,), generator(0, 0, "x"), device="cuda")
    assert asked[-2:] == ["pinned", ("cuda", {"non_blocking": True})]


def test_on_one_device_values_stay_what_they_are() -> None:
    values = torch.ones(2)
    assert sent(values, "cpu") is values and sent(values, "cpu", torch.float64).dtype == torch.float64
    assert sent(values, "meta").device.type == of_scenes(values, "meta").device.type == "meta"
    assert of_scenes(values, "cpu") is values


FREE = {("scenes/occupancy.py", "march_nerfacc"), ("scenes/occupancy.py", "_failure")}
"""A kernel's box, and a test call before the first step."""


def test_a_step_makes_no_list_of_numbers_on_its_device() -> None:
    """`torch.tensor(..., device=...)` is a copy from ordinary memory."""
    root, found = Path(threestudio_rf.__file__).parent, set()
    for folder in ("distill", "scenes", "trainer"):
        for path in (root / folder).glob("*.py"):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef):
                    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                    made = [c for c in calls if ast.unparse(c.func) == "torch.tensor" and len(c.keywords) > 0]
                    if any(word.arg == "device" for call in made for word in call.keywords):
                        found.add((path.relative_to(root).as_posix(), function.name))
    assert found == FREE


@pytest.mark.gpu
def test_a_step_on_a_gpu_waits_for_it_once() -> None:
    means = torch.tensor([[0.8, -0.8, -0.8], [-0.8, -0.6, 0.8]])[:, :, None, None].expand(-1, -1, 8, 8)
    prior = GaussianPrior(means.cuda(), 0.1, names=["red", "blue"])
    scene = ImageScene((4, 3, 8, 8), "pixels", per_step=4, order="random", generator=generator(0, 0, "image")).cuda()
    rates = {"image": Constant(0.01)}
    looks = replace(LOOKS, sizes=[8], counts=[4])
    settings = LiftSettings(
        steps=6,
        method=Method(scale=4.0, noise="rev"),
        rates=rates,
        views=looks,
        times=replace(TIMES, draws=1),
        lambdas={"sparsity": Constant(0.1)},
        **LIMITS,
    )
    conditions, negative = prior.embed(["red"]).to("cuda"), prior.embed([""]).to("cuda")
    run = lift(
        scene,
        prior,
        conditions,
        negative=negative,
        optimiser=make_optimiser(scene, rates),
        settings=settings,
        device="cuda",
    )
    next(run)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            next(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1, [f"{wait.filename}:{wait.lineno}" for wait in waits]
