"""Warnings about a prior at its first use: settings of its folder that have no effect, and a network whose answers
contradict its declared kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional

from threestudio_rf.app.console import LOG
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.base import Condition, Prior
from threestudio_rf.priors.facts import FACTS

Use = Literal["sample", "edit", "loss"]
ALIKE = 0.5
"""Cosine of a network's answer with the pure noise it is asked about: near 1 for eps, near 0 for v."""
TIMES: dict[Use, str] = {
    "loss": "a loss draws t by loss.t_law, t_min, t_max and t_shift",
    "edit": "an edit takes its times from edit.steps, t_start and shift",
}
SHIFTS = ("shift", "flow_shift", "use_dynamic_shifting")
"""What a folder says of sampling that an edit takes from it too, as the prior's `time_shift`."""
_told: WeakKeyDictionary[Prior, set[Use]] = WeakKeyDictionary()


def tell(prior: Prior, condition: Callable[[], Condition], use: Use) -> None:
    """All hints of a prior, once for each use; `condition` gives some prompt, and is called only where the network has
    to be asked."""
    before = _told.setdefault(prior, set())
    if use in before:
        return
    tell_unread(prior, use)
    if not before and _has_a_choice(prior):
        warn_kind(prior, condition())
    before.add(use)


def _has_a_choice(prior: Prior) -> bool:
    facts = FACTS.get(prior.name)
    return facts is not None and len(facts.kinds) > 1 and prior.kind in ("eps", "v")


@torch.no_grad()
def warn_kind(prior: Prior, condition: Condition) -> None:
    """Warn where a network declared to predict eps does not answer pure noise with that noise, or one declared to
    predict v does. Costs one call."""
    noise = normal((1, *prior.latent_shape), generator(0, 0, "kind"))
    answer = prior.predict(noise, torch.ones(1), condition.select([0])).to(noise)
    cosine = functional.cosine_similarity(answer.flatten(1), noise.flatten(1)).item()
    if (cosine > ALIKE) != (prior.kind == "eps"):
        other = "v" if prior.kind == "eps" else "eps"
        LOG.warning(
            "%s: its network is read as %s, as its scheduler or prior.kind says, but answers pure noise as one of %s "
            "does (cosine %.2f with the noise); prior.kind=%s if pictures stay noise",
            prior.name,
            prior.kind,
            other,
            cosine,
            other,
        )


def tell_unread(prior: Prior, use: Use) -> None:
    """Log, in one line, the sampling settings of the prior's folder that have no effect on a loss or an edit."""
    found = prior.pipeline.for_sampling() if use in TIMES else ()
    if use == "edit":
        found = tuple(item for item in found if item.partition("=")[0] not in SHIFTS)
    if found:
        LOG.info("the folder of %s says %s, which is for sampling; %s", prior.name, ", ".join(found), TIMES[use])
