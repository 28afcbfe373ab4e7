"""Words that the embedded prior has never seen."""

from __future__ import annotations

from threestudio_rf.app.console import LOG
from threestudio_rf.priors.tiny import EMBEDDED, known_words, unknown_words, weights_folder
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS


def warn_unknown_words(prompt: str, prior: str) -> list[str]:
    """One warning that names them, what the embedded prior knows, and how to use a larger one; the run goes on. None
    for another prior."""
    if prior not in EMBEDDED:
        return []
    folder = weights_folder() / prior.replace("_", "-")
    unknown = unknown_words(prompt, folder)
    if unknown:
        LOG.warning(
            "the prior %s has never seen: %s. It knows the shapes %s in the colours %s, for example "
            '"a red mushroom". For other things use larger weights: experiment=rfds_sd3 '
            "prior.path=<folder or owner/name>",
            prior,
            ", ".join(unknown),
            ", ".join(shape for shape in SHAPES if shape in known_words(folder)),
            ", ".join(COLOURS),
        )
    return unknown
