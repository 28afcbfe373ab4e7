"""Text that is drawn into pictures: in a font that has all its letters, else numbers in its place."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

NOWHERE = "\U0010ffff"
"""A character that no font has: what is drawn for it is what a font draws for those it lacks."""
FANCY = ("bold", "italic", "oblique", "mono", "serif", "condensed", "light", "emoji", "symbol")
MOST_FONTS = 300


class Typeface(NamedTuple):
    """A font, None for Pillow's own, and the lines to draw in it."""

    file: str | None
    lines: list[str]

    def at(self, size: float) -> Any:
        """Pillow's font at this height in pixels."""
        from PIL import ImageFont

        return ImageFont.load_default(size) if self.file is None else ImageFont.truetype(self.file, size)


def drawable(lines: Sequence[str]) -> Typeface | None:
    """A font that has all letters of `lines`, each made one line; None where no font of this machine has them."""
    flat = [" ".join(line.encode("utf-8", "replace").decode().split()) for line in lines]
    letters = "".join(sorted(set("".join(flat)) - {" "}))
    if _own_has(letters):
        return Typeface(None, flat)
    file = _font_with(letters)
    return None if file is None else Typeface(file, flat)


def typeface(lines: Sequence[str]) -> Typeface:
    """The same, but where no font has the letters the lines are numbers, and a warning tells which number stands for
    which line."""
    found = drawable(lines)
    if found is not None:
        return found
    numbers = [str(number) if line else "" for number, line in enumerate(lines, 1)]
    meant = ", ".join(f"{number} = {line}" for number, line in zip(numbers, lines, strict=True) if line)
    warnings.warn(f"no font here has all letters, so pictures are numbered: {meant}", stacklevel=3)
    return Typeface(None, numbers)


def _own_has(letters: str) -> bool:
    from PIL import ImageFont

    font = ImageFont.load_default(16)
    lacking = font.getmask(NOWHERE)
    return all(
        (mask := font.getmask(letter)).size != lacking.size or bytes(mask) != bytes(lacking) for letter in letters
    )


@lru_cache(maxsize=64)
def _font_with(letters: str) -> str | None:
    """A font file of this machine that has all letters: matplotlib's DejaVu Sans, then plain ones, then the others."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    bundled = str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    system = sorted(findSystemFonts(), key=lambda file: (any(word in Path(file).stem.lower() for word in FANCY), file))
    for file in [bundled, *system[:MOST_FONTS]]:
        try:
            if FT2Font(file).get_charmap().keys() >= {ord(letter) for letter in letters}:
                ImageFont.truetype(file, 16)
                return file
        except (OSError, RuntimeError):  # no font, or one that cannot be scaled
            continue
    return None
