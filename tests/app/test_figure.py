"""The page of curves: what it takes from a run folder, and that it is written.

Seen to fail: rows of equal seconds kept -> speed; the last item left out -> a few of many; snapshots in the order of a
folder -> snapshots; points that are not finite kept -> not finite; a title read as mathematics -> the page.
"""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
import torch
from PIL import Image

from threestudio_rf.app.report.curves import series, snapshots, speed, spread, write_curves
from threestudio_rf.export.media import png


def test_snapshots_are_found_by_step_and_number_of_objects_and_of_pictures(tmp_path):
    for name in (
        "save/it100-0.png",
        "save/it20-1.png",
        "save/it20-0.png",
        "save/it20-test/0.png",
        "save/it20-sheet.png",
    ):
        png(tmp_path / name, torch.zeros(3, 2, 2))
    for name in ("00300_10.png", "00300_09.png", "notes_1.png", "save/00300_11.png"):
        png(tmp_path / name, torch.zeros(3, 2, 2))
    found = {step: [path.name for path in paths] for step, paths in snapshots(tmp_path).items()}
    assert list(found.items()) == [
        (20, ["it20-0.png", "it20-1.png"]),
        (100, ["it100-0.png"]),
        (300, ["00300_09.png", "00300_10.png"]),
    ]


def test_a_few_of_many_are_taken_evenly_with_both_ends():
    assert spread(list(range(4)), 8) == [0, 1, 2, 3]
    taken = spread(list(range(100)), 8)
    assert (len(taken), taken[0], taken[-1]) == (8, 0, 99)
    assert {b - a for a, b in pairwise(taken)} == {14, 15}


def test_speed_is_steps_per_second_between_rows():
    rows = [
        {"step": 10.0, "seconds": 1.0},
        {"step": 20.0},
        {"step": 30.0, "seconds": 5.0},
        {"step": 31.0, "seconds": 5.0},
    ]
    assert speed(rows) == [(30.0, 5.0)]
    assert speed([]) == []


def test_points_that_are_not_finite_are_left_out():
    rows = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": float("nan")}, {"step": 3.0}, {"step": 4.0, "loss": 1.0}]
    assert series(rows, "step", "loss") == [(1.0, 2.0), (4.0, 1.0)]


@pytest.mark.parametrize("title", ["a red ball", r"costs $\frac{$ and more"])
def test_the_page_of_a_finished_run_is_a_whole_picture_of_a_page(title, finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    (copy / "save/curves.png").unlink()
    path = write_curves(copy, title)
    assert path == copy / "save/curves.png"
    with Image.open(path) as page:
        page.load()
        assert abs(page.size[1] / page.size[0] - 2**0.5) < 0.01 and page.size[0] > 700
        assert len(page.convert("RGB").getcolors(10**6)) > 20


def test_a_run_without_rows_has_no_page(tmp_path):
    assert write_curves(tmp_path, "nothing") is None and not list(tmp_path.iterdir())
