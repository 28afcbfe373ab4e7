"""Errors of the command line and the exit codes they mean: 0 good, 1 the run failed, 2 the user can mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

GOOD, FAILED, USER_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


class UserError(Exception):
    """Something the user can mend: printed as one paragraph without a traceback, exit code 2."""


class RunError(Exception):
    """The run failed for a known reason: printed as one paragraph, exit code 1."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?` for the nearest of `known`, also by the last part of a dotted key; else nothing."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=2, cutoff=0.75)
    if not near:
        tails: dict[str, list[str]] = {}
        for name in names:
            tails.setdefault(name.rsplit(".", 1)[-1], []).append(name)
        last = word.rsplit(".", 1)[-1]
        near = [name for tail in difflib.get_close_matches(last, tails, n=2, cutoff=0.75) for name in tails[tail]]
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def user_path(text: str | Path, key: str) -> Path:
    """A path that a user gives, `~` resolved. UserError naming `key` where there is no home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={text}: {error}; give a path without ~") from None
