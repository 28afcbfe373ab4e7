"""task=evaluate: how right a finished run is, where the true shape and colour are known."""

from __future__ import annotations

import json

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run import Run
from threestudio_rf.core.random import generator
from threestudio_rf.export.mesh import Mesh
from threestudio_rf.priors.tiny import verify_weights, weights_folder
from threestudio_rf.scenes.base import Scene
from threestudio_rf.tiny.judge import load_judge
from threestudio_rf.tiny.score import held_out, score_scene
from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.truth import subject, true_mesh
from threestudio_rf.tiny.world import COLOURS

KEYS: tuple[str, ...] = ("judged_accuracy", "silhouette_iou", "chamfer", "colour_error", "janus")
KEYS += ("seconds", "network_calls", "peak_memory_mb")
MEANING = {
    "judged_accuracy": "share of views judged right in shape and colour, bound 1",
    "silhouette_iou": "overlap of the outlines, bound 1",
    "chamfer": "mean distance of the surfaces, longest side = 1",
    "colour_error": "CIE76 distance to the named colour",
    "janus": "share of views judged from the wrong side; empty: no front to tell",
    "seconds": "of the training loop",
    "network_calls": "of the prior, per view",
    "peak_memory_mb": "largest memory of the process (GPU: of the device)",
}


def evaluate_scene(run: Run, scene: Scene, mesh: Mesh | None, spent: dict[str, float]) -> dict[str, float | None]:
    """The figures of `KEYS`. UserError for a prompt without a known truth, or a judge that is not whole."""
    found = subject(run.config.prompt)
    if found is None:
        raise UserError(
            f"{run.config.prompt!r} names no single shape and colour of the tiny world, so its truth is unknown; "
            f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"
        )
    faults = verify_weights("judge.safetensors")
    if faults:
        raise UserError(f"the judge is not whole: {faults[0]}")
    shape, colour = found
    figures = score_scene(
        scene,
        mesh,
        shape=shape,
        colour=colour,
        truth=true_mesh(SHAPES[shape]),
        judge=load_judge(weights_folder()),
        generator=generator(run.config.seed, 0, "score"),
        camera=held_out(run.config.evaluate.size),
        device=run.device,
    )
    every = figures | spent
    return {key: every.get(key) for key in KEYS}


def show(run: Run, figures: dict[str, float | None]) -> None:
    """The figures as a table, and as `metrics.json` in the run folder."""
    (run.folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    for key in KEYS:
        value = figures[key]
        LOG.info("%-18s %10s  %s", key, "-" if value is None else f"{value:.4g}", MEANING[key])
