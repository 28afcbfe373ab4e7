"""task=lift: build, run the loop, save, look, export, evaluate."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from threestudio_rf.app.build.hints import tell
from threestudio_rf.app.build.method import build_optimiser, build_twin, embed_roles, lift_settings
from threestudio_rf.app.build.prior import facts_of, wording
from threestudio_rf.app.build.scene import SCENES, prior_id
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.build.words import warn_unknown_words
from threestudio_rf.app.console import LOG, Progress, memory
from threestudio_rf.app.errors import GOOD
from threestudio_rf.app.report.score import right_share
from threestudio_rf.app.run.extras import open_loggers
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.compose import to_text
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.tasks.doctor import duration, fits
from threestudio_rf.app.tasks.output import look
from threestudio_rf.app.tasks.output.finish import finish, page_so_far, shown
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.app.tasks.output.viewer import viewed
from threestudio_rf.priors.twin import Twin
from threestudio_rf.tiny.world.bank import HIGH, LOW, NARROW
from threestudio_rf.trainer import checkpoint
from threestudio_rf.trainer.lift import LiftState, lift
from threestudio_rf.trainer.log import Metrics
from threestudio_rf.trainer.optim import restore

MEDIA_BYTES = 100e6
SHARED = 4
"""Views of a step from which on two threads share its work with gain."""


@dataclass
class Lift(Result):
    """The objects of one lift and what it has spent."""

    twin: Twin | None = None

    @cached_property
    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW over the groups of the scene."""
        return build_optimiser(self.run.config, self.scene)

    @property
    def checkpoints(self) -> str:
        """The folder of checkpoints."""
        return str(self.run.folder / "ckpts")

    def save(self) -> bool:
        """A checkpoint of this step; a full disk is a warning, the older ones stay."""
        state = checkpoint.pack(
            step=self.step,
            scene=self.scene.state_dict(),
            optimiser=self.optimiser.state_dict(),
            config=to_text(self.run.config),
            prior=prior_id(self.run.config.prior),
            figures=self.spent(),
            extra={} if self.twin is None else {"twin": self.twin.state_dict()},
        )
        try:
            checkpoint.save(self.run.folder / "ckpts", state, keep=self.run.config.checkpoint.keep)
        except OSError as error:
            LOG.warning("no checkpoint of step %d (%s); the one before is kept", self.step, error.strerror or error)
            return False
        return True


def prepare(run: Run) -> Lift:
    """Prior, scene and optimiser, with the state of the checkpoint that is resumed."""
    made = Lift(run)
    _ = made.prior, made.optimiser
    if run.resumed is not None:
        if run.config.resume:
            with checkpoint.fitting(run.resumed.path, "optimiser"):
                restore(made.optimiser, run.resumed.state["optimiser"])
            checkpoint.restore_random_states(run.resumed.state["rng"])
            made.step = run.resumed.state["step"]
            made.figures = dict(run.resumed.state["figures"])
        LOG.info("scene of %s (step %d)", run.resumed.path, run.resumed.state["step"])
    return made


def warn_bank(config: Config) -> None:
    """Warn when cameras stand where tiny_exact has no true views: one distance and field of view, and the elevations of
    its bank unless it renders the view of the camera."""
    if "bank_views" not in facts_of(config.prior).reads or not SCENES[config.scene.name].posed:
        return
    camera, known = config.camera, NARROW
    where = {"camera.distance": (camera.distance, known.distance), "camera.fovy": (camera.fovy, known.fovy)}
    if wording(config.prior) != "camera":
        where["camera.elevation"] = (camera.elevation, (LOW, HIGH))
    for key, (got, expected) in where.items():
        if got[0] < expected[0] or got[1] > expected[1]:
            LOG.warning(
                "%s=%s: the true views that %s knows are seen from %s, so others look wrong to it; "
                "experiment=tiny_exact sets cameras that fit",
                key,
                list(got),
                config.prior.name,
                list(expected),
            )


def warn_space(made: Lift) -> None:
    """Warn when the disk cannot hold the checkpoints and pictures of this run."""
    values = sum(value.numel() * value.element_size() for value in made.scene.state_dict().values())
    needed = 3 * values * (made.run.config.checkpoint.keep + 1) + MEDIA_BYTES
    free = shutil.disk_usage(made.run.folder).free
    if free < needed:
        LOG.warning("%.0f MB are free at %s, this run may need %.0f MB", free / 1e6, made.run.folder, needed / 1e6)


def run_lift(made: Lift) -> Iterator[LiftState]:
    """The trainer's loop over these objects."""
    config = made.run.config
    conditions, negative = embed_views(config, made.prior)
    extra = embed_roles(config, made.prior, views=len(conditions) > 1)
    made.twin = build_twin(config, made.prior, conditions)
    if made.twin is not None and config.resume and made.run.resumed is not None:
        learned = (made.run.resumed.state.get("extra") or {}).get("twin")
        if learned is None:
            LOG.warning("the checkpoint holds no twin: a fresh one begins")
        else:
            with checkpoint.fitting(made.run.resumed.path, "twin"):
                made.twin.load_state_dict(learned)
    tell(made.prior, lambda: conditions, "loss")
    settings, ranks = lift_settings(config), made.run.ranks
    if not made.row.posed:
        settings = replace(settings, views=replace(settings.views, counts=(ranks.size,)))
    ranks.wait()
    return lift(
        made.scene,
        made.prior,
        conditions,
        negative=negative,
        optimiser=made.optimiser,
        settings=settings,
        first_step=made.step,
        device=made.run.device,
        extra=extra,
        twin=made.twin,
        ranks=ranks,
    )


@contextmanager
def step_threads(config: Config) -> Iterator[None]:
    """Take steps with `trainer.threads` of torch's threads. By default with its own number, but of two with one where
    the prior is embedded and a step has less than `SHARED` views: to share small operations costs more time than it
    saves (bench/threads.py)."""
    own = torch.get_num_threads()
    views = max(config.camera.views) if SCENES[config.scene.name].posed else 1
    small = facts_of(config.prior).world and own == 2 and views < SHARED
    torch.set_num_threads(config.trainer.threads or (1 if small else own))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def train(made: Lift, stop: Stop) -> None:
    """Run the loop with its files: metrics, pictures, checkpoints. Ends early when `stop` is asked."""
    config, total = made.run.config, made.run.config.trainer.steps
    metrics = Metrics(made.run.folder / "csv_logs" / "metrics.csv")
    metrics.resume(made.step)
    publish = open_loggers(made.run)
    judge, bar = right_share(made.run), Progress(total, made.step)
    begun, first = time.perf_counter(), made.step
    try:
        for state in viewed(made, run_lift(made), stop):
            made.figures["seconds"] += time.perf_counter() - begun
            if made.step == first and made.scene.remark():
                LOG.info("%s", made.scene.remark())
            made.step = state.step + 1
            made.figures["network_calls"] += state.metrics["network_calls"]
            if made.step % config.trainer.log_every == 0 or made.step == total:
                row = {name: value for name, value in state.metrics.items() if name != "network_calls"}
                metrics.add(made.step, row | {"seconds": made.figures["seconds"]})
                publish(made.step, row)
            bar.update(made.step, _shown(state.metrics))
            if _due(made.step, config.trainer.validate_every, total):
                watch(made, judge)
            frame = frame_at(made.step, total, config.trainer.progress)
            if frame is not None and made.row.posed:
                look.progress_frame(made, frame)
            stop.agree(made.run.ranks.any(stop.asked))
            if stop.asked or made.step == total or _due(made.step, config.checkpoint.every, total):
                made.save()
            if stop.asked:
                made.run.ranks.wait()  # a process that ends first would have the others ended before all is saved
                return
            begun = time.perf_counter()
    finally:
        bar.close()


def watch(made: Lift, judge: Callable[[Tensor], float] | None) -> None:
    """Write the pictures of this step and keep the figures `seconds_to_right` and `network_calls_to_right`: what had
    been spent when half of the pictures were judged right and stayed so. A later look that is wrong takes the figures
    back, since the judge has no answer for noise and may guess right at the start."""
    images = shown(made).snapshot(made)
    page_so_far(made)
    if judge is None:
        return
    right = judge(images) >= 0.5
    for name in ("seconds", "network_calls"):
        if right:
            made.figures.setdefault(f"{name}_to_right", made.figures[name])
        else:
            made.figures.pop(f"{name}_to_right", None)


def frame_at(step: int, total: int, frames: int) -> int | None:
    """The number of the frame taken at this step, of `frames` spread evenly over `total` steps; None for none."""
    frames = min(frames, total)
    before, now = ((at * frames) // total for at in (step - 1, step))
    return now - 1 if now > before else None


def _due(step: int, every: int, total: int) -> bool:
    return every > 0 and (step % every == 0 or step == total)


def _shown(metrics: dict[str, float]) -> dict[str, str]:
    return {"loss": f"{metrics['loss']:.3g}", "t": f"{metrics['t']:.2f}", "memory": memory()}


def follow(run: Run) -> int:
    """Run the steps of a process that is not the first: the same as the first one's, without files."""
    made = prepare(run)
    with Stop() as stop:
        if made.step < run.config.trainer.steps:
            for state in run_lift(made):
                made.step = state.step + 1
                stop.agree(run.ranks.any(stop.asked))
                if stop.asked:
                    run.ranks.wait()
                    return stop.code
    return GOOD


def command(run: Run) -> int:
    """task=lift mode=train: exit code 0, 1 when the final files could not be written, 130 or 143 after a signal."""
    config = run.config
    LOG.info("experiment %s, preset %s, loss %s: %r", config.experiment, config.preset, config.loss.name, config.prompt)
    line, whole = fits(config, run.device)
    for warning in filter(None, [duration(config, run.device), "" if whole else line]):
        LOG.warning("%s", warning)
    made = prepare(run)
    warn_unknown_words(config.prompt, config.prior.name)
    warn_space(made)
    warn_bank(config)
    with Stop() as stop:
        if made.step < run.config.trainer.steps:
            with step_threads(config):
                train(made, stop)
        else:
            LOG.info("already at step %d of %d: nothing to train", made.step, run.config.trainer.steps)
        if stop.asked:
            LOG.info("stopped after step %d; go on with: python launch.py resume=%s", made.step, run.folder)
            return stop.code
        return finish(made)
