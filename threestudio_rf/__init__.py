"""Text to 3D, images, inversion and editing by score distillation from frozen diffusion and rectified-flow priors.

`sample`, `invert`, `edit`, `lift`, `evaluate` and `export` are the commands of the same names from Python, without
Hydra and without a run folder; `load_prior` is for many calls, and `distill` makes a frozen prior the loss of one's own
renderer. What they need is imported when they are first asked for.

`distill`, `edit` and `export` are folders of the package too. Python keeps one object under one name, so these are the
folders' modules, which can be called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from inspect import Signature, signature
from types import ModuleType
from typing import TYPE_CHECKING, Any

from threestudio_rf.version import __version__ as __version__

if TYPE_CHECKING:
    from threestudio_rf.app.api import invert, load_prior, sample
    from threestudio_rf.app.guidance import distill
    from threestudio_rf.app.objects import lift
    from threestudio_rf.app.results import edit, evaluate, export

__all__ = ["__version__", "distill", "edit", "evaluate", "export", "invert", "lift", "load_prior", "sample"]
_PLACES = {"api": ("invert", "load_prior", "sample"), "guidance": ("distill",), "objects": ("lift",)}
_PLACES["results"] = ("edit", "evaluate", "export")
_FOLDERS = ("distill", "edit", "export")


def _function(name: str) -> Callable[..., Any]:
    place = next((place for place, names in _PLACES.items() if name in names), None)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: Callable[..., Any] = getattr(import_module(f"{__name__}.app.{place}"), name)
    return found


def __getattr__(name: str) -> Any:
    return import_module(f"{__name__}.{name}") if name in _FOLDERS else _function(name)


class _Folder(ModuleType):
    """A folder of the package that is also the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _function(self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> Signature:
        return signature(_function(self.__name__.rpartition(".")[2]))


class _Package(ModuleType):
    """This package: a folder that Python hands to it on import becomes callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FOLDERS and isinstance(value, ModuleType):
            value.__class__ = _Folder
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
