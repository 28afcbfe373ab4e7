"""The page of a run: complete, self-contained, and no prompt can break it.

Mutation seen to fail: the title not escaped.
"""

from __future__ import annotations

import re
import shutil

from threestudio_rf.app.report.page import curve, write_report


def test_the_page_shows_pictures_curves_and_settings_and_links_what_is_there(finished):
    text = (finished / "index.html").read_text(encoding="utf-8")
    for part in ("it6-sheet.png", "it6-test.mp4", "it6-export/model.glb", "loss: ", "a red ball", "launch.py"):
        assert part in text
    for link in re.findall(r'(?:src|href)="(?!data:)([^"]+)"', text):
        assert (finished / link).exists(), link


def test_a_prompt_cannot_break_the_page(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    text = write_report(copy, "<script>alert('x')</script> & more").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_curve_leaves_out_what_is_not_finite():
    assert curve("loss", [(1, 2.0)]) == ""
    drawn = curve("loss", [(0, 1.0), (1, float("nan")), (2, float("inf")), (4, 3.0)])
    assert "0.0,120.0 320.0,0.0" in drawn and "1 to 3" in drawn
