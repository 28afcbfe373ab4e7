"""How a setting is declared. The module imports the standard library only."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def opt(default: Any, text: str, **rule: Any) -> Any:
    """A field with its help text and rule: `low`, `high` (inclusive), `above` (exclusive), `choices`, `length` (of a
    list), `span` (a list [low, high]), `ramp` (a value over steps)."""
    metadata = {"help": text, **rule}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type) -> Any:
    """A field that holds a group of settings."""
    return field(default_factory=kind)
