"""task=sample: pictures straight from the prior, by the same core that distils."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from threestudio_rf.app.build.picture import read_mask, read_picture
from threestudio_rf.app.build.prior import build_prior
from threestudio_rf.app.build.sampling import plan, run
from threestudio_rf.app.build.views import with_view
from threestudio_rf.app.build.words import warn_unknown_words
from threestudio_rf.app.console import LOG, Progress
from threestudio_rf.app.errors import GOOD
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.sample import State, intermediates
from threestudio_rf.export.media import contact_sheet, png
from threestudio_rf.priors.base import Prior

COLUMNS = 8


def every_of(settings: SampleConfig, steps: int) -> int:
    """Steps between the pictures of a strip."""
    return settings.log_every or max(1, round(steps / COLUMNS))


def command(run_: Run) -> int:
    """`save/00000.png ...`, `save/sheet.png` and on request `save/strip.png`."""
    config, settings = run_.config, run_.config.sample
    image = read_picture(settings.image, "sample.image") if settings.image else None
    mask = read_mask(settings.mask, "sample.mask") if settings.mask else None
    prior = build_prior(config.prior, run_.device)
    made = plan(
        prior,
        _text(config),
        settings,
        negative_prompt=config.negative_prompt,
        seed=config.seed,
        device=run_.device,
        image=image,
        mask=mask,
    )
    numbers_of = [range(i, min(i + settings.batch, settings.n)) for i in range(0, settings.n, settings.batch)]
    progress = Progress(len(numbers_of) * made.steps)
    pictures: list[Tensor] = []
    strips: list[tuple[str, list[Tensor]]] = []
    for numbers in numbers_of:
        told = _told(run(made, numbers), progress, f"{numbers[0] + 1}-{numbers[-1] + 1} of {settings.n}")
        seen = intermediates(told, every_of(settings, made.steps))
        images = prior.decode(seen[-1].x).cpu()
        for i, picture in zip(numbers, images, strict=True):
            png(run_.save(f"{i:05d}.png"), picture)
        pictures += list(images)
        if settings.strip and len(strips) < COLUMNS:
            strips += _strips(prior, seen)
    progress.close()
    return _sheets(run_, pictures, strips, [str(made.steps - state.left) for state in seen])


def _text(config: Config) -> str:
    """The prompt with its view word; words that an embedded prior has never seen are told."""
    warn_unknown_words(config.prompt, config.prior.name)
    return with_view(config, config.sample.view)


def _told(states: Iterable[State], progress: Progress, pictures: str) -> Iterator[State]:
    for state in states:
        progress.update(progress.step + 1, {"pictures": pictures, "t": f"{float(state.t[0]):.3f}"})
        yield state


def _strips(prior: Prior, seen: list[State]) -> list[tuple[str, list[Tensor]]]:
    """One row per picture of the batch: what each chosen state took for the clean picture."""
    columns = [prior.decode(state.x0_hat).cpu() for state in seen]
    return [("", list(row)) for row in zip(*columns, strict=True)]


def _sheets(run_: Run, pictures: list[Tensor], strips: list[tuple[str, list[Tensor]]], titles: list[str]) -> int:
    cell = max(64, min(256, pictures[0].shape[-1]))
    rows = [("", pictures[i : i + COLUMNS]) for i in range(0, len(pictures), COLUMNS)]
    LOG.info("wrote %s", png(run_.save("sheet.png"), contact_sheet(rows, cell=cell)))
    if strips:
        sheet = contact_sheet(strips[:COLUMNS], titles=titles, cell=cell)
        LOG.info("wrote %s (x0_hat after each step)", png(run_.save("strip.png"), sheet))
    return GOOD
