"""What is told of a prior before it is used: what its folder says that nothing reads, and whether its network answers
as it is said to."""

from __future__ import annotations

import torch
from torch.nn import functional

from threestudio_rf.app.build.prior import facts_of
from threestudio_rf.app.console import LOG
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.base import Condition, Prior

ALIKE = 0.5
"""Cosine of a network's answer with the pure noise it is asked about: near 1 for eps, near 0 for v."""


@torch.no_grad()
def warn_kind(config: PriorConfig, prior: Prior, condition: Condition) -> None:
    """Warn where a network that is said to predict eps does not answer pure noise with that noise, or one that is said
    to predict v does. One call of it, for the priors that leave a choice of `prior.kind`."""
    if len(facts_of(config).kinds) < 2 or prior.kind not in ("eps", "v"):
        return
    noise = normal((1, *prior.latent_shape), generator(0, 0, "kind"))
    answer = prior.predict(noise, torch.ones(1), condition.select([0])).to(noise)
    cosine = functional.cosine_similarity(answer.flatten(1), noise.flatten(1)).item()
    if (cosine > ALIKE) != (prior.kind == "eps"):
        other = "v" if prior.kind == "eps" else "eps"
        LOG.warning(
            "%s: its network is read as %s, by %s, but answers pure noise as one of %s does (cosine %.2f with the "
            "noise); prior.kind=%s if pictures stay noise",
            prior.name,
            prior.kind,
            "its scheduler" if config.kind == "auto" else f"prior.kind={config.kind}",
            other,
            cosine,
            other,
        )


def tell_unread(prior: Prior) -> None:
    """What the prior's folder says of sampling alone, in one line: losses draw t by their own settings."""
    found = prior.pipeline.for_sampling()
    if found:
        LOG.info(
            "the folder of %s says %s, which is for sampling; a loss draws t by loss.t_law, t_min, t_max and t_shift",
            prior.name,
            ", ".join(found),
        )
