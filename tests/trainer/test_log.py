"""metrics.csv through crashes, resumes, new columns and a full disk; pictures.

Mutations seen to fail: `<` for `<=` in `resume`, the cut of the last line removed, `add` that does not widen the
header, the clamp of a picture removed.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from threestudio_rf.trainer.log import Metrics, image, row_of_pictures


def test_a_row_is_on_the_disk_as_soon_as_it_is_added(tmp_path):
    metrics = Metrics(tmp_path / "csv_logs" / "metrics.csv")
    metrics.add(10, {"loss": 0.5, "t": 1 / 3})
    metrics.add(20, {"loss": 0.25, "t": 1e-7})
    assert metrics.file.read_text() == "step,loss,t\n10,0.5,0.333333333\n20,0.25,1e-07\n"


def test_rows_beyond_the_resumed_step_are_dropped(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        metrics.add(step, {"loss": float(step)})
    again = Metrics(tmp_path / "metrics.csv")
    again.resume(20)
    again.add(30, {"loss": 7.0})
    assert [(row["step"], row["loss"]) for row in again.rows()] == [(10, 10), (20, 20), (30, 7)]


def test_a_line_that_was_cut_by_a_crash_is_dropped(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\n10,1\n20,2\n30,")
    metrics = Metrics(file)
    metrics.resume(30)
    assert [row["step"] for row in metrics.rows()] == [10, 20]


def test_a_new_column_widens_the_file(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.add(1, {"loss": 1.0})
    metrics.add(2, {"loss": 2.0, "sparsity": 0.5})
    metrics.add(3, {"loss": 3.0})
    assert metrics.file.read_text() == "step,loss,sparsity\n1,1,\n2,2,0.5\n3,3,\n"
    assert metrics.rows()[0] == {"step": 1.0, "loss": 1.0}


def test_a_full_disk_costs_rows_and_one_warning_but_not_the_run(tmp_path, monkeypatch):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.add(1, {"loss": 1.0})
    metrics.file.unlink()
    metrics.file.mkdir()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        metrics.add(2, {"loss": 2.0})
        metrics.add(3, {"loss": 2.0})
    assert len(seen) == 1 and "cannot be written" in str(seen[0].message)


def test_a_picture_is_clamped_and_comes_back(tmp_path):
    picture = torch.tensor([-1.0, 0.0, 0.5, 2.0]).expand(3, 2, 4).clone()
    picture[1] = 0.0
    image(tmp_path / "save" / "a.png", picture)
    found = np.asarray(Image.open(tmp_path / "save" / "a.png"))
    assert found.shape == (2, 4, 3)
    assert found[1, :, 0].tolist() == [0, 0, 128, 255] and found[..., 1].max() == 0


def test_a_picture_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got \(4, 2\), expected \(3, H, W\)"):
        image(tmp_path / "a.png", torch.zeros(4, 2))


def test_pictures_stand_side_by_side_in_their_order():
    pictures = torch.arange(2 * 3 * 2 * 5).reshape(2, 3, 2, 5).float()
    row = row_of_pictures(pictures)
    assert row.shape == (3, 2, 10)
    assert torch.equal(row[:, :, 5:], pictures[1])


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00step", b"\0" * 40, b"", b"step\n", b"a,b\n1,2\n", b'"' * 9 + b"x" * 200_000]
)
def test_a_file_that_is_no_table_has_no_rows_and_is_written_anew(tmp_path, data):
    file = tmp_path / "metrics.csv"
    file.write_bytes(data)
    assert Metrics(file).rows() == []
    table = Metrics(file)
    table.resume(5)
    table.add(6, {"loss": 1.0})
    assert Metrics(file).rows() == [{"step": 6.0, "loss": 1.0}]


def test_cells_that_are_no_numbers_are_left_out(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_bytes("step,loss\n1,caf\xe9\nnan,2\ninf,3\n4,5,6\n7\n".encode("latin-1"))
    assert Metrics(file).rows() == [{"step": 1.0}, {"step": 4.0, "loss": 5.0}, {"step": 7.0}]


def test_rows_are_never_appended_through_a_link(tmp_path):
    outside = tmp_path / "theirs"
    outside.write_text("theirs\n")
    (tmp_path / "metrics.csv").symlink_to(outside)
    table = Metrics(tmp_path / "metrics.csv")
    for step in (1, 2):
        table.add(step, {})
    assert outside.read_text() == "theirs\n" and len(table.rows()) >= 1
