"""task=evaluate: how right a finished run is, where the true shape and colour are known."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from threestudio_rf.app.build.prior import bank_cache, facts_of
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config
from threestudio_rf.core.files import write_text
from threestudio_rf.core.random import generator
from threestudio_rf.export.mesh import EmptyGeometryError, Mesh, automatic_level, sample_grid
from threestudio_rf.priors.tiny import verify_weights, weights_folder
from threestudio_rf.scenes.base import Scene, Surface
from threestudio_rf.tiny.world.figures.fit import RESOLUTION, Volume, filled, rating
from threestudio_rf.tiny.world.figures.score import held_out, score_scene
from threestudio_rf.tiny.world.figures.score2d import judged_right, score_pictures
from threestudio_rf.tiny.world.judge import Judge, load_judge
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.truth import Subject, subject
from threestudio_rf.tiny.world.views import COLOURS, IMAGE_SIZE

SPENT: tuple[str, ...] = (
    "seconds",
    "network_calls",
    "seconds_to_right",
    "network_calls_to_right",
    "peak_memory_mb",
)
KEYS = ("volume_iou", "silhouette_iou", "chamfer", "colour_error", "saturation", "janus", "recognised", *SPENT)
KEYS_2D = ("nearest_view_iou", "colour_error", "saturation", "diversity", "diversity_latent", "recognised", *SPENT)
MEANING = {
    "volume_iou": "overlap of the solid with the true one: good from 0.85, fair from 0.7",
    "silhouette_iou": "overlap of the outlines, bound 1",
    "nearest_view_iou": "overlap of each outline with the nearest true view, bound about 0.94",
    "recognised": "by the judge: share of views whose shape and colour it names; it forgives melted shapes",
    "chamfer": "mean distance of the surfaces, longest side of the true one = 1",
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


def judge() -> Judge:
    """The judge. UserError when its weights are not whole."""
    faults = verify_weights("judge.safetensors")
    if faults:
        raise UserError(f"the judge is not whole: {faults[0]}")
    return load_judge(weights_folder())


def tellable(config: Config, prompt: str) -> bool:
    """Whether the truth of a prompt is known and wanted: a prior of the tiny world, a prompt with a truth there,
    `evaluate.auto`."""
    return config.evaluate.auto and facts_of(config.prior).world and subject(prompt) is not None


def known(prompt: str) -> tuple[Subject, Judge]:
    """Subject of a prompt, and the judge. UserError for a prompt without a known truth, or a judge that is not
    whole."""
    found = subject(prompt)
    if found is None:
        raise UserError(
            f"{prompt!r} names no single shape and colour of the tiny world, so its truth is unknown; "
            f"shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"
        )
    return found, judge()


def right_share(run: Run) -> Callable[[Tensor], float] | None:
    """The share of pictures (N, 3, H, W) that are judged right; None where nothing is `tellable`, or the judge does not
    know the shape."""
    if not tellable(run.config, run.config.prompt):
        return None
    try:
        found, classify = known(run.config.prompt)
    except UserError as error:
        LOG.warning("pictures are not judged: %s", error)
        return None
    if judged_right(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE), classify, found) is None:
        return None

    def share(images: Tensor) -> float:
        right = judged_right(images.cpu(), classify, found)
        return 0.0 if right is None else float(right.float().mean())

    return share


def evaluate_pictures(run: Run, images: Tensor, latents: Tensor, spent: dict[str, float]) -> dict[str, float | None]:
    """The figures of `KEYS_2D` of pictures (N, 3, H, W) and their latents. UserError as `known`."""
    found, classify = known(run.config.prompt)
    with torch.no_grad():
        figures = score_pictures(
            images, latents, subject=found, judge=classify, cache=bank_cache(run.config.prior.cache)
        )
    every = figures | spent
    return {key: every.get(key) for key in KEYS_2D}


def volume_of(scene: Scene, device: torch.device) -> Volume | None:
    """Where a scene is solid, by the level that its mesh would have, without cavities; None where it is nowhere, or has
    no surface."""
    if not isinstance(scene, Surface):
        return None
    radius = scene.radius
    grid = sample_grid(scene.density, radius, RESOLUTION, device=device)
    try:
        level = automatic_level(grid, 2 * radius / (RESOLUTION - 1))
    except EmptyGeometryError:
        return None
    return Volume(filled(grid > level), torch.linspace(-radius, radius, RESOLUTION))


def evaluate_scene(
    run: Run, scene: Scene, volume: Volume | None, mesh: Mesh | None, spent: dict[str, float]
) -> dict[str, float | None]:
    """The figures of `KEYS`, for a scene that is no `Surface` without those of its volume. UserError as `known`."""
    found, classify = known(run.config.prompt)
    nowhere = torch.zeros((RESOLUTION,) * 3, dtype=torch.bool)
    figures = score_scene(
        scene,
        volume or Volume(nowhere, torch.linspace(-1, 1, RESOLUTION)),
        mesh,
        subject=found,
        judge=classify,
        generator=generator(run.config.seed, 0, "score"),
        camera=held_out(run.config.evaluate.size),
        device=run.device,
    )
    unknown = {} if isinstance(scene, Surface) else dict.fromkeys(("volume_iou", "silhouette_iou", "chamfer"))
    every = figures | unknown | spent
    return {key: every.get(key) for key in KEYS}


def show(run: Run, figures: dict[str, float | None]) -> None:
    """The figures as a table, and as `metrics.json` in the run folder."""
    write_text(run.folder / "metrics.json", json.dumps(figures, indent=2) + "\n")
    for key, value in figures.items():
        LOG.info("%-22s %10s  %s", key, "-" if value is None else f"{value:.4g}", meaning(key, value))


def meaning(key: str, value: float | None) -> str:
    """Meaning of a figure in words; of the volume IoU its rating first."""
    word = f"{rating(value)}; " if key == "volume_iou" and value is not None else ""
    return word + MEANING[key]
