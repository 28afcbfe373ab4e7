"""Text to 3D, images, inversion and editing by score distillation from frozen diffusion and rectified-flow priors.

`load_prior`, `sample`, `invert` and `lift` are the commands of the same names from Python, without Hydra and without
files; what they need is imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threestudio_rf.app.api import invert, load_prior, sample
    from threestudio_rf.app.objects import lift

__version__ = "0.5.0"
__all__ = ["__version__", "invert", "lift", "load_prior", "sample"]
_PLACES = {"invert": "api", "lift": "objects", "load_prior": "api", "sample": "api"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.app.{_PLACES[name]}"), name)
