"""Pictures and masks that people bring: what is transparent, what is white, which range, which files of a folder.

Seen to fail: transparency of a mask taken for white, the colour of a one-coloured mask for its value, 0..1 for black,
whole numbers of 8 bits for 16, a file left out without a word, an edit overwritten by the sheet of the same name,
strips without their offset, figures of the whole picture, two pictures of one name.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from threestudio_rf.app.build.picture import (
    bounded,
    check_mask,
    fitted,
    read_mask,
    read_picture,
    spread,
    suffixes,
)
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.tasks import edit
from threestudio_rf.app.tasks.desk import Given, names_of, pictures_of
from threestudio_rf.app.tasks.edit import delivered


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    Image.fromarray(values, mode).save(path)
    return path


def layers(colour: tuple[int, int, int], alpha: np.ndarray) -> np.ndarray:
    return np.dstack([*(np.full(alpha.shape, c, np.uint8) for c in colour), alpha.astype(np.uint8)])


ALPHA = np.zeros((4, 6), np.uint8)
ALPHA[1:3, 2:4] = 255


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (200, 30, 60)])
def test_of_a_mask_in_one_colour_the_opaque_part_may_change(tmp_path: Path, colour, capfd) -> None:
    mask = read_mask(save(tmp_path / "m.png", layers(colour, ALPHA)), "edit.mask")
    assert mask.shape == (1, 4, 6) and torch.equal(mask[0], torch.from_numpy(ALPHA) / 255)


def test_of_a_painted_mask_white_may_change_and_what_is_transparent_is_kept(tmp_path: Path) -> None:
    painted = layers((0, 0, 0), ALPHA)
    painted[1, 2:4, :3] = 255
    mask = read_mask(save(tmp_path / "m.png", painted), "edit.mask")
    assert mask.sum() == 2 and (mask[0, 1, 2:4] == 1).all()
    assert read_picture(tmp_path / "m.png", "edit.image")[:, 0, 0].tolist() == [1, 1, 1], "a picture is before white"
    grey = read_mask(save(tmp_path / "g.png", ALPHA), "edit.mask")
    assert torch.equal(grey[0], torch.from_numpy(ALPHA) / 255)


def test_a_mask_of_zeros_and_ones_is_taken_as_meant_and_a_dark_one_is_refused_with_its_largest_value(
    tmp_path: Path,
) -> None:
    ones = read_mask(save(tmp_path / "ones.png", ALPHA // 255), "edit.mask")
    assert torch.equal(ones[0], torch.from_numpy(ALPHA) / 255)
    faint = read_mask(save(tmp_path / "faint.png", layers((255, 255, 255), ALPHA // 255)), "edit.mask")
    assert torch.equal(faint, ones)
    dark = read_mask(save(tmp_path / "dark.png", ALPHA // 5), "edit.mask")
    with pytest.raises(UserError, match="largest value is 51 of 255"):
        check_mask(dark, torch.zeros(3, 4, 6), "edit")


@pytest.mark.parametrize(("largest", "white"), [(255, 255), (40_000, 65_535)])
def test_whole_numbers_without_a_stated_range_are_read_by_their_values(
    tmp_path: Path, largest: int, white: int
) -> None:
    values = np.linspace(0, largest, 24).astype(np.int32).reshape(4, 6)
    picture = read_picture(save(tmp_path / "n.tif", values), "edit.image")
    assert picture[0, -1, -1] == pytest.approx(largest / white, abs=1e-4)


@pytest.mark.parametrize(("largest", "white"), [(1, 1), (0.4, 1), (255, 255), (65_535, 65_535)])
def test_numbers_with_a_point_are_read_by_their_values(tmp_path: Path, largest: float, white: int) -> None:
    values = np.linspace(0, largest, 24).astype(np.float32).reshape(4, 6)
    picture = read_picture(save(tmp_path / "n.tif", values), "edit.image")
    assert picture[0, -1, -1] == pytest.approx(largest / white, abs=1e-4)
    if white == 1:
        assert read_mask(tmp_path / "n.tif", "edit.mask").max() == pytest.approx(largest)


@pytest.mark.parametrize("values", [[-255, 0], [0, 70_000], [0, np.nan], [0, np.inf], [-0.5, 0.5]])
def test_numbers_that_are_no_picture_are_refused_with_their_range(tmp_path: Path, values: list[float]) -> None:
    kind = np.int32 if all(float(value).is_integer() for value in values if np.isfinite(value)) else np.float32
    kind = kind if np.isfinite(values).all() else np.float32
    with pytest.raises(UserError, match=r"edit.image=.*: a picture whose numbers go from .* to .*, expected 0 to 1"):
        read_picture(save(tmp_path / "n.tif", np.array([values], kind)), "edit.image")


def test_every_picture_of_a_folder_is_taken_and_what_is_left_out_is_told(tmp_path: Path, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("threestudio_rf.app.tasks.desk.LOG.warning", lambda text, *names: told.append(text % names))
    for name in ("a.png", "b.jfif", "c.webp"):
        save(tmp_path / name, np.zeros((4, 4, 3), np.uint8))
    for name in ("notes.txt", "d.heic", "._a.png", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    assert [path.name for path in pictures_of(str(tmp_path))] == ["a.png", "b.jfif", "c.webp"]
    assert told == ["left out: d.heic, more/, notes.txt"]
    with pytest.raises(UserError, match="has no pictures"):
        pictures_of(str(tmp_path / "more"))
    with pytest.raises(UserError, match="a folder, expected a picture"):
        read_mask(tmp_path / "more", "edit.mask")
    assert {".jpg", ".jfif", ".tif", ".webp"} <= suffixes() and ".eps" not in suffixes()


def test_postscript_is_not_handed_to_another_program(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="not a picture"):
        read_picture(tmp_path / "a.png", "edit.image")


@pytest.mark.parametrize("name", ["strip", "ball"])
def test_an_edited_picture_is_not_overwritten_by_the_sheet(launcher, tmp_path: Path, name: str) -> None:
    red = save(tmp_path / f"{name}.png", np.full((16, 16, 3), (200, 30, 30), np.uint8))
    line = ["task=edit", "prior=gaussian", f"image={red}", "source=red", "prompt=blue", f"exp_root_dir={tmp_path}/out"]
    code, folder, _, err = launcher(*line)
    assert code == 0, err
    sheet = "all-strip.png" if name == "strip" else "strip.png"
    assert Image.open(folder / f"save/{name}.png").size == (16, 16) and (folder / "save" / sheet).exists()
    assert Image.open(folder / "save" / sheet).size[0] > 100


@pytest.mark.parametrize("size", [(90, 130), (37, 64), (20, 11)])
def test_rows_that_are_scaled_back_by_themselves_are_those_of_the_whole(size: tuple[int, int]) -> None:
    small = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = spread(small, size)
    parts = [spread(small, size, slice(at, min(at + 7, size[0]))) for at in range(0, size[0], 7)]
    assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-6)


@pytest.mark.parametrize("keep", [0.0, 0.15])
def test_a_large_picture_is_put_together_strip_by_strip_as_in_one(monkeypatch, keep: float) -> None:
    image = torch.rand(3, 90, 130, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 90, 130)
    mask[:, 20:70] = 1
    small = fitted(image, (16, 16), "x")
    given = Given("x", image, mask, small, small, small)
    edited = torch.cat([1 - small, small * 0.5])
    whole = delivered(given, edited, keep)
    monkeypatch.setattr(edit, "STRIP", 130 * 8)
    assert torch.allclose(delivered(given, edited, keep), whole, atol=1e-5)


def test_a_large_picture_is_edited_at_its_size_and_measured_at_a_bounded_one(launcher, tmp_path: Path) -> None:
    red = save(tmp_path / "big.png", np.full((700, 1030, 3), (200, 30, 30), np.uint8))
    line = ["task=edit", "prior=gaussian", f"image={red}", "source=red", "prompt=blue", f"exp_root_dir={tmp_path}/out"]
    code, folder, out, err = launcher(*line)
    assert code == 0 and "scaled to 512 x 348" in out, err
    assert Image.open(folder / "save/big.png").size == (1030, 700)
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["figures_at"] == "512 x 348" and figures["psnr"] < 15
    assert Image.open(folder / "save/strip.png").size[1] < 400
    assert bounded(torch.zeros(3, 700, 1030), 2000).shape == (3, 700, 1030)


def test_no_two_pictures_of_a_folder_have_one_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "a_png.webp", "B.png", "b.gif", "c.png")]
    names = names_of(paths)
    assert len({name.casefold() for name in names.values()}) == len(paths)
    assert names[paths[5]] == "c" and names[paths[2]] == "a_png" and names[paths[1]] == "a_jpg"


def test_the_sheet_of_an_inversion_leaves_a_picture_of_its_name(launcher, tmp_path: Path) -> None:
    red = save(tmp_path / "strip.png", np.full((16, 16, 3), (200, 30, 30), np.uint8))
    line = ["task=invert", "prior=gaussian", f"image={red}", "source=red", "steps=2", f"exp_root_dir={tmp_path}/out"]
    code, folder, _, err = launcher(*line)
    assert code == 0 and (folder / "save/all-strip.png").exists(), err
    assert Image.open(folder / "save/strip.png").size == (8, 8)
