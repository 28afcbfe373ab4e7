"""The end of task=lift: final pictures, mesh, figures, the page of curves and the report."""

from __future__ import annotations

from collections.abc import Callable

from threestudio_rf.app.build.prior import TINY_WORLD
from threestudio_rf.app.console import LOG, peak_memory_mb
from threestudio_rf.app.errors import FAILED, GOOD, UserError
from threestudio_rf.app.report.curves import write_curves
from threestudio_rf.app.report.page import write_report
from threestudio_rf.app.report.score import SPENT, evaluate_pictures, evaluate_scene, show, tellable, volume_of
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks import image, look
from threestudio_rf.export.mesh import EmptyGeometryError
from threestudio_rf.priors.base import Prior
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.tiny.world.fit import Volume, borders
from threestudio_rf.tiny.world.score2d import diversity
from threestudio_rf.tiny.world.truth import subject

Figures = dict[str, float | None]


def finish(run: Run, prior: Prior, scene: HashGridNeRF | ImageScene, *, step: int, figures: dict[str, float]) -> int:
    """The final pictures and figures, with those of how right it is where the truth is known; then the page of curves
    and the report. What fails is told and the rest still made."""
    if isinstance(scene, ImageScene):
        code = finish_image(run, prior, scene, step=step, figures=figures)
    else:
        code = finish_scene(run, scene, step, figures)
    title = run.config.prompt or run.config.name
    for write in (write_curves, write_report):
        try:
            LOG.info("wrote %s", write(run.folder, title))
        except (OSError, UserError) as error:
            LOG.warning("no curves or report: %s", error)
    return code


def finish_image(run: Run, prior: Prior, scene: ImageScene, *, step: int, figures: dict[str, float]) -> int:
    """Every particle, all of them on one sheet, and their figures."""
    images = image.snapshot(run, prior, scene, step)
    code = image.finish(run, images, step)
    known, spent, latents = _known(run), _spent(figures), scene.pictures.detach().cpu()
    apart = {"diversity": diversity(images), "diversity_latent": diversity(latents)}
    _told(run, lambda: evaluate_pictures(run, images, latents, spent) if known else apart | _only(spent))
    return code


def figures_of_image(run: Run, prior: Prior, scene: ImageScene, figures: dict[str, float]) -> Figures:
    """How right and how different the particles are, and what they have cost."""
    return evaluate_pictures(run, image.decoded(scene, prior), scene.pictures.detach().cpu(), _spent(figures))


def finish_scene(run: Run, scene: HashGridNeRF, step: int, figures: dict[str, float]) -> int:
    """Turntable, mesh and figures."""
    code, mesh = GOOD, None
    try:
        for path in look.test(run, scene, step):
            LOG.info("wrote %s", path)
    except OSError as error:
        LOG.error("the final pictures could not be written: %s", error)
        code = FAILED
    try:
        mesh = look.export(run, scene, step)
    except (OSError, EmptyGeometryError) as error:
        LOG.error("no mesh: %s", error)
        code = FAILED
    known, spent = _known(run), _spent(figures)
    volume = _whole(run, scene)
    _told(run, lambda: evaluate_scene(run, scene, volume, mesh, spent) if known else _only(spent))
    return code


def _whole(run: Run, scene: HashGridNeRF) -> Volume | None:
    """Where the object is solid; a warning where the cube of the scene cuts it."""
    volume = volume_of(scene, run.config.scene.radius, run.device)
    found = touched(volume)
    if found is not None:
        LOG.warning("%s and may be cut flat there; a larger scene.radius or loss.lambda_border keeps it inside", found)
    return volume


def touched(volume: Volume | None) -> str | None:
    """Which sides of its cube an object touches; None where it lies inside, or there is none."""
    sides = [] if volume is None else borders(volume)
    return f"the object touches the border of its scene ({', '.join(sides)})" if sides else None


def _spent(figures: dict[str, float]) -> dict[str, float]:
    """What a run has cost, its memory up to now included."""
    return figures | {"peak_memory_mb": peak_memory_mb()}


def _only(spent: dict[str, float]) -> Figures:
    """The figures of cost alone."""
    return {name: spent.get(name) for name in SPENT}


def _known(run: Run) -> bool:
    """Whether the run is judged; where only the prompt is in the way, that is told."""
    config = run.config
    if config.evaluate.auto and config.prior.name in TINY_WORLD and subject(config.prompt) is None:
        LOG.info("nothing is judged: the prompt does not name one shape and one colour of the tiny world")
    return tellable(config, config.prompt)


def _told(run: Run, figures: Callable[[], Figures]) -> None:
    try:
        show(run, figures())
    except (OSError, UserError) as error:
        LOG.warning("no figures: %s", error)
