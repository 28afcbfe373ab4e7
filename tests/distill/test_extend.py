"""The code of docs/extend.md runs as it is printed.

Seen to fail: a keyword of `Combiner` renamed.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/extend.md"


@pytest.mark.usefixtures("own_tables")
def test_the_method_of_the_page_runs_in_thirty_lines_and_finds_the_mode(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    exec(compile(code, str(DOCUMENT), "exec"), {})
    said = re.fullmatch(r"distance to the red mode (\d\.\d+), network calls (\d+)\n", capsys.readouterr().out)
    assert said is not None and float(said[1]) < 0.15 and said[2] == "180"


def test_the_page_names_files_and_tables_that_are_there() -> None:
    root = DOCUMENT.parents[1]
    for path in re.findall(r"`((?:threestudio_rf|tests)/[\w/]+\.py)`", DOCUMENT.read_text("utf-8")):
        assert (root / path).is_file(), path
