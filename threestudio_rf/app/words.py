"""Words that the embedded prior has never seen."""

from __future__ import annotations

from threestudio_rf.app.console import LOG
from threestudio_rf.priors.tiny import unknown_words
from threestudio_rf.tiny.shapes import SHAPES
from threestudio_rf.tiny.world import COLOURS


def warn_unknown_words(prompt: str) -> list[str]:
    """One warning that names them, what the prior knows, and how to use a larger one; the run goes on."""
    unknown = unknown_words(prompt)
    if unknown:
        LOG.warning(
            "the embedded prior has never seen: %s. It knows the shapes %s in the colours %s, for example "
            '"a red mushroom". For other things use larger weights: experiment=rfds_sd3 '
            "prior.path=<folder or owner/name>",
            ", ".join(unknown),
            ", ".join(SHAPES),
            ", ".join(COLOURS),
        )
    return unknown
