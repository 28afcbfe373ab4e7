"""Errors of the command line and the exit codes they mean: 0 good, 1 the run failed, 2 the user can mend it."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import sys
from collections.abc import Iterable, Sequence
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


PATHS: tuple[str, ...] = ("exp_root_dir", "resume", "weights", "prompt_file")
PATHS += ("prior.path", "prior.cache", "prior.vae", "sample.image", "sample.mask", "edit.image", "edit.mask")
PATHS += ("edit.lpips", "train_tiny.folder", "train_tiny.start", "grid.docs")
"""Settings that name files and folders."""
VARIABLE = re.compile(r"\$\{oc\.env:(\w+)(?:,([^}]*))?\}")
OF_SHELLS = re.compile(r"\$([A-Za-z_]\w*)|%([A-Za-z_]\w*)%")


def user_path(text: str | Path, key: str) -> Path:
    """A path that a user gives, `~` and `${oc.env:NAME}` resolved. UserError naming `key` for what no path can be."""
    found = VARIABLE.sub(lambda match: os.environ.get(match[1], match[2] or match[0]), str(text))
    if "${" in found:
        raise UserError(
            f"{key}={text}: expected a path; of ${{...}} only ${{oc.env:NAME}} of a variable that is set works"
        )
    for shell in OF_SHELLS.finditer(found):
        name, end = shell[1] or shell[2], found.find("/", shell.end())
        if name in os.environ and not os.path.lexists(found[:end] if end >= 0 else found):
            raise UserError(f"{key}={text}: {shell[0]} is for a shell, without quotes; here it is ${{oc.env:{name}}}")
    if "\0" in found:
        raise UserError(f"{key}={text!r}: expected a path, which has no zero bytes")
    try:
        path = Path(found).expanduser()
        path.exists()
    except RuntimeError as error:
        raise UserError(f"{key}={text}: {error}; give a path without ~") from None
    except OSError as error:
        raise UserError(f"{key}={found[:80]}: {error.strerror or error}") from None
    except UnicodeEncodeError:  # locale C: names are bytes
        return Path(os.fsdecode(found.encode("utf-8", "surrogateescape")))
    return path


def as_utf8(argv: Sequence[str]) -> list[str]:
    """Words of a command line whose bytes are UTF-8 although the locale says something else, as the text they are."""
    encoding = sys.getfilesystemencoding()
    words = []
    for word in argv:
        try:
            words.append(word.encode(encoding, "surrogateescape").decode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # no bytes of a command line
            words.append(word)
    return words


MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
)
MARKS += ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
"""What a text file may begin with, and its encoding; the longer ones first."""


def user_text(path: str | Path, key: str) -> str:
    """A text file of the user in UTF-8, UTF-16 or UTF-32, without its mark. UserError naming `key` for what cannot be
    read or is something else."""
    file = user_path(path, key)
    try:
        data = file.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={path}: {getattr(error, 'strerror', None) or error}") from None
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", ""))
    if not mark:
        half = data[: 2 * (min(len(data), 512) // 2)]
        zeros = half[1::2].count(0), half[::2].count(0)
        little, big = (2 * count > len(half) // 2 for count in zeros)
        encoding = "utf-16-le" if little and not big else "utf-16-be" if big and not little else "utf-8"
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[len(mark) + error.start]
        raise UserError(
            f"{key}={path}: expected text in UTF-8 or UTF-16, got byte 0x{byte:02x} in line {line}; save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{key}={path}: expected text, got a file with zero bytes in it")
    return text
