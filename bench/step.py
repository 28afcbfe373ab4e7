"""The whole `lift` step of a preset over the sum of its unavoidable parts timed alone, in one run.

    python bench/step.py [--steps 40] [--warm 150] [--threads 2] [key=value ...]

The parts: the network calls, the encoder forward and backward, the field on the same samples forward and backward, the
optimiser's step. Steps and parts are timed in turn; medians of each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from threestudio_rf.app.build.method import build_optimiser, lift_settings
from threestudio_rf.app.build.scene import build_prior, build_scene
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.core.guide import cfg
from threestudio_rf.priors.base import bind
from threestudio_rf.scenes.occupancy import march
from threestudio_rf.trainer.lift import lift, seen_from


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warm", type=int, default=150)
    parser.add_argument("--threads", type=int, default=2)
    options, more = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    config = typed(compose(["prompt='a red mushroom'", *more]))
    device = torch.device("cpu")
    prior, scene = build_prior(config.prior, device), build_scene(config.scene, config.seed, device)
    conditions, negative = embed_views(config, prior)
    optimiser = build_optimiser(config, scene)
    settings = lift_settings(config)
    run = lift(scene, prior, conditions, negative=negative, optimiser=optimiser, settings=settings)
    for _ in range(options.warm):
        next(run)
    times: dict[str, list[float]] = {}
    for _ in range(options.steps):
        step = {}
        started = time.perf_counter()
        state = next(run)
        step["whole step"] = time.perf_counter() - started
        step |= parts(scene, prior, conditions, negative, optimiser, settings, state)
        for name, value in step.items():
            times.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    total = sum(value for name, value in medians.items() if name != "whole step")
    for name, value in medians.items():
        print(f"{name:32s} {1000 * value:8.2f} ms")
    print(f"{'sum of the parts':32s} {1000 * total:8.2f} ms")
    print(f"whole step / sum of the parts {medians['whole step'] / total:.3f}")


def parts(scene, prior, conditions, negative, optimiser, settings, state) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Seconds of each unavoidable part on the cameras of `state`."""
    seen = seen_from(conditions, negative, camera=state.camera, settings=settings)
    predict, n = bind(prior, seen.conditions), len(state.camera)
    x, t = torch.randn(n, *prior.latent_shape), torch.full((n,), 0.5)
    roles = list(cfg(settings.method.scale))
    found = {}
    if settings.method.noise == "rev":
        calls = settings.method.rev_steps
        found["inner network calls"] = seconds(lambda: [predict(x, t, ["cond"]) for _ in range(calls)])
    found["network call"] = seconds(lambda: predict(x, t, roles))
    image = state.rendering.rgb.clone().requires_grad_()

    def encode() -> None:
        latents = prior.encode(image)
        latents.backward(torch.ones_like(latents))

    found["encoder forward and backward"] = seconds(encode)
    origins, directions = (rays.reshape(-1, 3) for rays in state.camera.rays())
    with torch.no_grad():
        samples = march(origins, directions, scene.occupancy, slots=scene.samples_per_ray, jitter=None)

    def field() -> None:
        density, rgb = scene.field(samples.points)
        torch.autograd.backward([density, rgb], [torch.ones_like(density), torch.ones_like(rgb)])

    optimiser.zero_grad(set_to_none=True)
    found["field forward and backward"] = seconds(field)
    kept: list[Tensor] = [p.detach().clone() for group in optimiser.param_groups for p in group["params"]]
    found["optimiser step"] = seconds(optimiser.step)
    with torch.no_grad():
        for p, value in zip((p for g in optimiser.param_groups for p in g["params"]), kept, strict=True):
            p.copy_(value)
    return found


if __name__ == "__main__":
    main()
