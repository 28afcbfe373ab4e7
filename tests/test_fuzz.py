"""Settings, run folders and prior folders that are wrong at random, from a seed: exit code 2 with one line and without
an exception's name, or the older good file, and nothing written outside. `bench/fuzz.py` draws many more.

Seen to fail: the check of a checkpoint's entries, of a config's types, the words of Hydra's lexer as they are.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCH = str(Path(__file__).resolve().parents[1] / "bench")


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, BENCH)
    yield importlib.import_module("fuzz")
    sys.path.remove(BENCH)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "count"), [("settings", 10), ("runs", 2), ("priors", 3)])
def test_what_is_wrong_at_random_is_refused_in_one_line_or_survived(
    fuzz, tmp_path: Path, kind: str, count: int
) -> None:
    answers = list(fuzz.cases(kind, count, 7, tmp_path / "place"))
    assert [(answer.fault, line) for line, answer in answers if answer.fault] == []
    assert len(answers) == count and {answer.code for _, answer in answers} <= {0, 2}


def test_the_judge_of_answers_sees_what_is_wrong(fuzz) -> None:
    assert fuzz.Answer(2, "", "error: seed=x: expected a number\n", []).fault == ""
    assert fuzz.Answer(0, "run: x\n", "warning: an older file is used\n", []).fault == ""
    for answer in (
        fuzz.Answer(2, "", "error: one\nmore of it\n", []),
        fuzz.Answer(2, "", "", []),
        fuzz.Answer(1, "", "error: x\n", []),
        fuzz.Answer(2, "", "error: KeyError: 'x'\n", []),
        fuzz.Answer(0, "Traceback (most recent call last)", "", []),
        fuzz.Answer(0, "", "", ["work/x"]),
    ):
        assert answer.fault, answer
