"""Text in pictures: every letter is drawn as itself, or the text is numbered.

Seen to fail: Pillow's own font taken for everything, fonts taken that lack letters, numbers given without a word.
"""

from __future__ import annotations

import pytest
import torch

from threestudio_rf.export import letters
from threestudio_rf.export.letters import typeface
from threestudio_rf.export.media import contact_sheet


@pytest.fixture(autouse=True)
def fresh():
    letters._font_with.cache_clear()


def test_ascii_is_drawn_in_pillows_own_font() -> None:
    assert typeface(["a red ball", ""]).file is None and typeface(["0°", "a\nb"]).lines == ["0°", "a b"]


def test_letters_that_pillows_font_lacks_are_drawn_in_one_that_has_them() -> None:
    from matplotlib.ft2font import FT2Font

    drawn = typeface(["ein grüner Würfel", "красный шар", "κύβος"])
    assert drawn.file is not None and drawn.lines[1] == "красный шар"
    assert all(ord(letter) in FT2Font(drawn.file).get_charmap() for letter in "üшκ")
    mask, lacking = drawn.at(16).getmask("ш"), drawn.at(16).getmask(letters.NOWHERE)
    assert bytes(mask) != bytes(lacking)


def test_where_no_font_has_the_letters_numbers_stand_for_the_text_and_that_is_told(monkeypatch) -> None:
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: ["/no/such/font.ttf"])
    with pytest.warns(UserWarning, match="1 = 红球, 3 = a blue ball"):
        drawn = typeface(["红球", "", "a blue ball"])
    assert drawn == (None, ["1", "", "3"])
    tile = torch.zeros(3, 16, 16)
    with pytest.warns(UserWarning, match="1 = 红球"):
        numbered = contact_sheet([("", [tile])], titles=["红球"], cell=64)
    assert torch.equal(numbered, contact_sheet([("", [tile])], titles=["1"], cell=64))


def test_text_that_is_no_text_is_drawn_without_an_error() -> None:
    assert contact_sheet([("a\udcff\n", [torch.zeros(3, 8, 8)])], titles=["\ud800", "x" * 500], cell=64).shape[0] == 3
