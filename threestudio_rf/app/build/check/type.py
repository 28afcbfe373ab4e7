"""Checks of every setting against its declared type and range, and of the memory that the settings ask for."""

from __future__ import annotations

from typing import Any, get_args, get_origin

import torch

from threestudio_rf.app.errors import PATHS, UserError
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.scenes.lattice import FINEST, plan

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
PER_PARAMETER = 16
"""Bytes of a number that is trained: itself, its gradient and two means."""


def check_types(config: Config) -> None:
    """UserError for a setting, or an element of a list, of another type than declared, and for text that is no text."""
    for key, leaf in leaves().items():
        value, kind = value_of(config, key), leaf.type
        if get_origin(kind) is list:
            inside = get_args(kind)[0]
            if not isinstance(value, list) or not all(_is(item, inside) for item in value):
                raise UserError(f"{key}={value}: expected a list whose elements are each {WORDS[inside]}")
        elif leaf.rule.get("ramp") and leaf.default is not None and (value is None or isinstance(value, bool)):
            shown = {None: "null", True: "true", False: "false"}[value]
            raise UserError(f"{key}={shown}: expected a number, or numbers over steps")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and key not in PATHS and any("\ud800" <= letter <= "\udfff" for letter in text):
                shown = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
                raise UserError(f"{key}={shown}: expected text in UTF-8, got bytes that are none")


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def check_memory(config: Config) -> None:
    """UserError for a lift whose hash grid does not fit the memory of the machine together with its optimiser, or whose
    finest level is beyond what single precision counts."""
    import psutil

    if config.task != "lift":
        return
    grid = config.scene.encoding
    levels = plan(grid.levels, grid.log2_table, grid.base, grid.growth, geometry=grid.geometry)
    entries = sum(level.size for level in levels)
    needed = PER_PARAMETER * entries * grid.features
    cuda = config.device != "cpu" and torch.cuda.is_available()
    there = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().total
    if needed > there:
        raise UserError(
            f"scene.encoding.levels={grid.levels}, scene.encoding.log2_table={grid.log2_table}: training needs "
            f"{needed / 1e9:.0f} GB, this machine has {there / 1e9:.0f}"
        )
    if levels[-1].resolution >= FINEST:
        raise UserError(
            f"scene.encoding.levels={grid.levels}, base={grid.base}, growth={grid.growth}: the finest level has "
            f"{levels[-1].resolution} cells a side, expected less than {FINEST}"
        )
