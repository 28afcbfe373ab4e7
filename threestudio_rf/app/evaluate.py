"""task=evaluate: how right a finished run is, where the true shape and colour are known."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run import Run
from threestudio_rf.core.random import generator
from threestudio_rf.export.mesh import Mesh
from threestudio_rf.priors.tiny import EMBEDDED, verify_weights, weights_folder
from threestudio_rf.scenes.base import Scene
from threestudio_rf.tiny.judge import Judge, load_judge
from threestudio_rf.tiny.score import held_out, score_scene
from threestudio_rf.tiny.score2d import judged_right, score_pictures
from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.truth import subject, true_mesh
from threestudio_rf.tiny.world import COLOURS

SPENT: tuple[str, ...] = (
    "seconds",
    "network_calls",
    "seconds_to_right",
    "network_calls_to_right",
    "peak_memory_mb",
)
KEYS = ("judged_accuracy", "silhouette_iou", "chamfer", "colour_error", "saturation", "janus", *SPENT)
KEYS_2D = ("judged_accuracy", "colour_error", "saturation", "diversity", "diversity_latent", *SPENT)
MEANING = {
    "judged_accuracy": "share of views judged right in shape and colour, bound 1",
    "silhouette_iou": "overlap of the outlines, bound 1",
    "chamfer": "mean distance of the surfaces, longest side = 1",
    "colour_error": "CIE76 distance to the named colour",
    "saturation": "chroma less that of the named colour, above 0 too strong",
    "diversity": "mean distance (RMS) between two pictures",
    "diversity_latent": "the same between their latents",
    "janus": "share of views judged from the wrong side; empty: no front to tell",
    "seconds": "of the training loop, without its pictures and checkpoints",
    "network_calls": "of the prior, per view",
    "seconds_to_right": "until half of the pictures were judged right and stayed so; empty: never",
    "network_calls_to_right": "the same in network calls",
    "peak_memory_mb": "largest memory of the process (GPU: of the device)",
}


def known(run: Run) -> tuple[str, str, Judge]:
    """Shape and colour of the prompt, and the judge. UserError for a prompt without a known truth, or a judge that is
    not whole."""
    found = subject(run.config.prompt)
    if found is None:
        raise UserError(
            f"{run.config.prompt!r} names no single shape and colour of the tiny world, so its truth is unknown; "
            f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"
        )
    faults = verify_weights("judge.safetensors")
    if faults:
        raise UserError(f"the judge is not whole: {faults[0]}")
    return *found, load_judge(weights_folder())


def right_share(run: Run) -> Callable[[Tensor], float] | None:
    """The share of pictures (N, 3, H, W) that are judged right; None where nobody can tell, or `evaluate.auto` is off:
    only with an embedded prior and a prompt of the tiny world."""
    config = run.config
    if not config.evaluate.auto or config.prior.name not in EMBEDDED or subject(config.prompt) is None:
        return None
    try:
        shape, colour, judge = known(run)
    except UserError as error:
        LOG.warning("pictures are not judged: %s", error)
        return None
    return lambda images: float(judged_right(images.cpu(), judge, shape=shape, colour=colour).float().mean())


def evaluate_pictures(run: Run, images: Tensor, latents: Tensor, spent: dict[str, float]) -> dict[str, float | None]:
    """The figures of `KEYS_2D` of pictures (N, 3, H, W) and their latents. UserError as `known`."""
    shape, colour, judge = known(run)
    with torch.no_grad():
        figures = score_pictures(images, latents, shape=shape, colour=colour, judge=judge)
    every = figures | spent
    return {key: every.get(key) for key in KEYS_2D}


def evaluate_scene(run: Run, scene: Scene, mesh: Mesh | None, spent: dict[str, float]) -> dict[str, float | None]:
    """The figures of `KEYS`. UserError as `known`."""
    shape, colour, judge = known(run)
    figures = score_scene(
        scene,
        mesh,
        shape=shape,
        colour=colour,
        truth=true_mesh(SHAPES[shape]),
        judge=judge,
        generator=generator(run.config.seed, 0, "score"),
        camera=held_out(run.config.evaluate.size),
        device=run.device,
    )
    every = figures | spent
    return {key: every.get(key) for key in KEYS}


def show(run: Run, figures: dict[str, float | None]) -> None:
    """The figures as a table, and as `metrics.json` in the run folder."""
    (run.folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key, value in figures.items():
        LOG.info("%-22s %10s  %s", key, "-" if value is None else f"{value:.4g}", MEANING[key])
