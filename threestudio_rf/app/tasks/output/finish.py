"""The end of task=lift: final pictures, mesh, figures, the page of curves and the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from threestudio_rf.app.build.prior import facts_of
from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import FAILED, GOOD, UserError
from threestudio_rf.app.report.curves import write_curves
from threestudio_rf.app.report.page import write_report
from threestudio_rf.app.report.score import SPENT, evaluate_pictures, evaluate_scene, show, tellable, volume_of
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks.output import image, look
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.export.mesh import EmptyGeometryError
from threestudio_rf.scenes.base import Surface
from threestudio_rf.tiny.world.figures.fit import Volume, borders
from threestudio_rf.tiny.world.figures.score2d import diversity
from threestudio_rf.tiny.world.truth import subject

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Showing:
    """How results are shown and measured.

    snapshot  the pictures (N, 3, H, W) of a step in training, written
    test      the final pictures, written; the exit code
    finish    final pictures, files of export and figures; the exit code
    figures   those of a finished run
    export    the files of export; UserError for what has none
    """

    snapshot: Callable[[Result], Tensor]
    test: Callable[[Result], int]
    finish: Callable[[Result], int]
    figures: Callable[[Result], Figures]
    export: Callable[[Result], int]


def shown(result: Result) -> Showing:
    """How the result's kind of scene is shown: from all sides, or as pictures."""
    return AROUND if result.row.posed else PICTURES


def page_so_far(result: Result) -> None:
    """Write the page of a run from what it holds by now; a full disk is a warning."""
    try:
        write_report(result.run.folder, result.run.config.prompt or result.run.config.name)
    except OSError as error:
        LOG.warning("no page of step %d: %s", result.step, error.strerror or error)


def finish(result: Result) -> int:
    """The final pictures and figures, with those of how right it is where the truth is known; then the page of curves
    and the report. What fails is told and the rest still made."""
    run, code = result.run, shown(result).finish(result)
    title = run.config.prompt or run.config.name
    for write in (write_curves, write_report):
        try:
            LOG.info("wrote %s", write(run.folder, title))
        except (OSError, UserError) as error:
            LOG.warning("no curves or report: %s", error)
    return code


def test_pictures(result: Result) -> int:
    """Every particle, and all of them on one sheet."""
    return image.finish(result, image.snapshot(result))


def finish_pictures(result: Result) -> int:
    """Every particle, all of them on one sheet, and their figures."""
    run, images = result.run, image.snapshot(result)
    code = image.finish(result, images)
    known, spent, latents = _known(run), result.spent(), image.values_of(result).cpu()
    apart = {"diversity": diversity(images), "diversity_latent": diversity(latents)}
    _told(run, lambda: evaluate_pictures(run, images, latents, spent) if known else apart | _only(spent))
    return code


def figures_of_pictures(result: Result) -> Figures:
    """Figures of the particles: correctness, diversity, cost."""
    latents = image.values_of(result).cpu()
    return evaluate_pictures(result.run, image.decoded(result), latents, result.spent())


def no_export(result: Result) -> int:
    """UserError: pictures have no surface."""
    name = result.run.config.scene.name
    raise UserError(f"scene={name} has no surface, so there is no mesh to export; its pictures lie in the run folder")


def test_around(result: Result) -> int:
    """The turntable."""
    try:
        for path in look.test(result):
            LOG.info("wrote %s", path)
    except OSError as error:
        LOG.error("the final pictures could not be written: %s", error)
        return FAILED
    return GOOD


def export_around(result: Result) -> int:
    """The mesh, or the scene's own files."""
    try:
        look.export(result)
    except (OSError, EmptyGeometryError) as error:
        LOG.error("no mesh: %s", error)
        return FAILED
    return GOOD


def finish_around(result: Result) -> int:
    """Turntable, the video of the training, mesh and figures."""
    code, mesh = test_around(result), None
    try:
        for path in look.progress(result):
            LOG.info("wrote %s", path)
        if result.row.write is not None or isinstance(result.scene, Surface):
            mesh = look.export(result)
    except (OSError, EmptyGeometryError) as error:
        LOG.error("no mesh: %s", error)
        code = FAILED
    run, scene = result.run, result.scene
    known, spent = _known(run), result.spent()
    volume = _whole(result)
    _told(run, lambda: evaluate_scene(run, scene, volume, mesh, spent) if known else _only(spent))
    return code


def figures_around(result: Result) -> Figures:
    """Figures of a finished object: how right it is where the truth is known, and what it has cost."""
    run, scene, mesh = result.run, result.scene, None
    try:
        mesh = look.mesh_of(run, scene) if isinstance(scene, Surface) else None
    except EmptyGeometryError as error:
        LOG.warning("no mesh: %s", error)
    return evaluate_scene(run, scene, volume_of(scene, run.device), mesh, result.spent())


AROUND = Showing(look.validation, test_around, finish_around, figures_around, export_around)
PICTURES = Showing(image.snapshot, test_pictures, finish_pictures, figures_of_pictures, no_export)


def _whole(result: Result) -> Volume | None:
    """The volume that the object fills; warns where the cube of the scene cuts it."""
    volume = volume_of(result.scene, result.run.device)
    found = touched(volume)
    if found is not None:
        LOG.warning("%s and may be cut flat there; a larger scene.radius or loss.lambda_border keeps it inside", found)
    return volume


def touched(volume: Volume | None) -> str | None:
    """A sentence that names the sides of its cube that an object touches; None where it touches none."""
    sides = [] if volume is None else borders(volume)
    return f"the object touches the border of its scene ({', '.join(sides)})" if sides else None


def _only(spent: dict[str, float]) -> Figures:
    """The figures of cost alone."""
    return {name: spent.get(name) for name in SPENT}


def _known(run: Run) -> bool:
    """Whether the run is judged; where only the prompt is in the way, that is told."""
    config = run.config
    if config.evaluate.auto and facts_of(config.prior).world and subject(config.prompt) is None:
        LOG.info("nothing is judged: the prompt does not name one shape and one colour of the tiny world")
    return tellable(config, config.prompt)


def _told(run: Run, figures: Callable[[], Figures]) -> None:
    try:
        show(run, figures())
    except (OSError, UserError) as error:
        LOG.warning("no figures: %s", error)
