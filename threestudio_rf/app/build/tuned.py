"""Settings of an edit, from three sources: the method's own, those tuned for an embedded prior, the command line's."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.edit.method import METHODS, Settings

COMMON = ("image", "source", "prompts", "method", "mask", "paper", "keep", "video", "fps", "lpips")
NAMES = {"cfg": "scale", "cfg_source": "scale_source"}
"""Settings that no method has, and those with another name there."""

_SD: dict[str, dict[str, Any]] = {
    "euler": {"steps": 14, "t_start": 0.75, "scale": 2.0},
    "rf_solver": {"steps": 5, "t_start": 0.75, "scale": 2.0},
    "fireflow": {"steps": 9, "t_start": 0.75, "scale": 2.0},
    "rf_inversion": {"steps": 10, "t_start": 0.85, "scale": 4.0, "eta": 0.5, "stop": 0.6},
    "direct": {"steps": 12, "t_start": 0.85, "scale": 2.0},
    "irfds": {"scale": 3.0},
    "irfds_fast": {"scale": 3.0},
    "flowedit": {"steps": 8, "t_start": 0.75, "scale": 2.0, "scale_source": 1.0},
    "flowalign": {"steps": 8, "t_start": 0.75, "scale": 2.0},
    "dds": {"steps": 16, "t_start": 0.9, "t_min": 0.1, "rate": 1.5, "scale": 3.0, "scale_source": 3.0},
    "pds": {"steps": 24, "t_start": 0.9, "t_min": 0.5, "rate": 25.0, "scale": 6.0, "scale_source": 6.0},
    "drfs": {"steps": 8, "t_start": 0.8, "scale": 3.0, "scale_source": 1.0},
    "flowchef": {"steps": 14, "k": 0.05, "stop": 0.6, "scale": 3.0},
    "sdedit": {"steps": 10, "scale": 3.0},
}
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "tiny_sd3": _SD
    | {
        "euler": {"steps": 14, "t_start": 0.9, "scale": 2.0},
        "rf_solver": {"steps": 5, "t_start": 0.9, "scale": 2.0},
        "fireflow": {"steps": 9, "t_start": 0.9, "scale": 2.0},
        "direct": {"steps": 12, "t_start": 0.9, "scale": 2.0},
        "flowedit": {"steps": 8, "t_start": 0.85, "scale": 2.0, "scale_source": 1.0},
        "flowalign": {"steps": 8, "t_start": 0.85, "scale": 2.0},
        "pds": {"steps": 24, "t_start": 0.9, "t_min": 0.6, "rate": 40.0, "scale": 4.0, "scale_source": 4.0},
        "drfs": {"steps": 8, "t_start": 0.9, "scale": 2.5, "scale_source": 1.0},
        "sdedit": {"steps": 10, "scale": 4.0},
    },
    "tiny_sd": _SD,
    "tiny_sd_v": _SD,
    "tiny_instaflow": {
        "euler": {"steps": 14, "t_start": 0.85, "scale": 2.0},
        "rf_solver": {"steps": 5, "t_start": 0.85, "scale": 2.0},
        "fireflow": {"steps": 9, "t_start": 0.85, "scale": 2.0},
        "rf_inversion": {"steps": 10, "t_start": 0.9, "scale": 4.0, "eta": 0.5, "stop": 0.6},
        "irfds": {"scale": 2.0},
        "irfds_fast": {"scale": 2.0},
        "direct": {"steps": 12, "t_start": 0.9, "scale": 2.0},
        "flowedit": {"steps": 8, "t_start": 0.95, "scale": 1.5, "scale_source": 1.0},
        "flowalign": {"steps": 8, "t_start": 0.95, "scale": 1.5},
        "dds": {"steps": 16, "t_start": 0.95, "t_min": 0.4, "rate": 1.5, "scale": 3.0, "scale_source": 3.0},
        "pds": {"steps": 24, "t_start": 0.9, "t_min": 0.6, "rate": 40.0, "scale": 4.0, "scale_source": 4.0},
        "drfs": {"steps": 8, "t_start": 0.85, "scale": 4.0, "scale_source": 1.0},
        "flowchef": {"steps": 14, "k": 0.05, "stop": 0.6, "scale": 3.0},
        "sdedit": {"steps": 10, "t_start": 0.8, "scale": 3.0},
    },
}
"""prior -> method -> settings, chosen on a few dozen pictures that are not those of bench/edit.py (for tiny_instaflow
euler and rf_solver as fireflow, irfds as irfds_fast); docs/editing.md has the rule."""


PAPER: dict[str, dict[str, Any]] = {"irfds": {"down_steps": 18}, "flowedit": {"of": 50, "t_start": None}}
"""method -> settings where nothing was chosen: of the 20 steps of the reference's sampler the 18 below 0.9 are done, of
the 50 of FlowEdit's the last 33."""


def method_of(name: str, prior: str, config: EditConfig) -> Settings:
    """The settings of method `name` for the prior of that name; UserError for a setting that the method lacks or whose
    value it refuses."""
    own = METHODS[name]
    known = [field.name for field in fields(own)]
    chosen = None if config.paper else TUNED.get(prior)
    given = dict(PAPER.get(name, {}) if chosen is None else chosen.get(name, {}))
    _settle_times(given, config)
    for field in fields(config):
        value, inner = getattr(config, field.name), NAMES.get(field.name, field.name)
        if field.name in COMMON or value is None:
            continue
        if inner not in known:
            shown = sorted({key: other for other, key in NAMES.items()}.get(key, key) for key in known)
            raise UserError(f"edit.{field.name}={value}: method {name} has no such setting; it has {', '.join(shown)}")
        given[inner] = value
    try:
        return replace(own, **given)
    except ValueError as error:
        raise UserError(f"edit.method={name}: {error}") from None


def _settle_times(given: dict[str, Any], config: EditConfig) -> None:
    """Of the two ways to state the times, `of` and `t_start`, keep the one that the command line speaks of; steps or
    t_start without `of` mean even ones."""
    if config.of is not None:
        given["t_start"] = None
    elif "of" in given and not (config.steps is None and config.t_start is None):
        del given["of"], given["t_start"]
