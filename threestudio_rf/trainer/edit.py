"""A prior bound to the prompts of an edit: picture to noise to picture, by any method of `edit/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threestudio_rf.core.random import Draws
from threestudio_rf.core.sample import State
from threestudio_rf.edit.method import Settings, edit, find_noise, resample, settled
from threestudio_rf.edit.path import SOURCE, TARGET, Path
from threestudio_rf.priors.base import Prior, bind


@dataclass(frozen=True)
class Editing:
    """One method for a batch of latents x0 (B, C, h, w); `calls` counts network calls per sample.

    The states are those of `edit.method`, computed without gradients; the last one's x is the result.
    """

    path: Path
    settings: Settings

    @property
    def calls(self) -> int:
        """Network calls per sample so far."""
        return self.path.model.calls

    def edit(self, x0: Tensor, *, generator: Draws, mask: Tensor | None = None) -> Iterator[State]:
        """The edit with the target prompts."""
        return _quiet(lambda: edit(self.path, x0, self.settings, generator=generator, mask=mask))

    def reconstruct(self, x0: Tensor, *, generator: Draws) -> Iterator[State]:
        """The same method asked for the source, with the source's guidance."""
        return _quiet(lambda: edit(self.path, x0, self.settings.faithful(), generator=generator, role=SOURCE))

    def find_noise(self, x0: Tensor, *, generator: Draws) -> Iterator[State]:
        """The search for the noise; `edit.method.gathered` keeps of it what `resample` needs."""
        return _quiet(lambda: find_noise(self.path, x0, self.settings, generator=generator))

    def resample(
        self,
        x0: Tensor,
        found: Sequence[State],
        *,
        faithful: bool,
        mask: Tensor | None = None,
        generator: Draws | None = None,
    ) -> Iterator[State]:
        """The way down from the noise of the last of `found`: to the source's picture if `faithful`, else to the
        target's. Those before are needed by a method that goes back the way it came (`edit.direct`)."""
        settings, role = (self.settings.faithful(), SOURCE) if faithful else (self.settings, TARGET)
        eps = found[-1].x
        return _quiet(
            lambda: resample(self.path, x0, eps, settings, role=role, mask=mask, trail=found, generator=generator)
        )


def begin(prior: Prior, settings: Settings, *, source: Sequence[str], target: Sequence[str]) -> Editing:
    """Embed the prompts, 1 or B of each, and settle the method. Each text is embedded once.

    ValueError for what the prior's path does not have.
    """
    chosen = settled(settings, prior.schedule, prior.time_shift)
    texts = list(dict.fromkeys([*source, *target, ""]))
    found = prior.embed(texts)
    roles = {SOURCE: source, TARGET: target, "uncond": [""]}
    model = bind(prior, {role: found.select([texts.index(text) for text in asked]) for role, asked in roles.items()})
    return Editing(Path(model), chosen)


def _quiet(begun: Callable[[], Iterator[State]]) -> Iterator[State]:
    """The states of a run, each computed without gradients; between them gradients are as they were."""
    with torch.no_grad():
        run = begun()
    while True:
        with torch.no_grad():
            state = next(run, None)
        if state is None:
            return
        yield state
