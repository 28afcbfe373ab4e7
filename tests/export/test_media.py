"""Pictures and videos read back by Pillow and ffmpeg, and what remains when the disk is full.

Mutations seen to fail: truncation instead of rounding (rounded), size not padded and padding with zeros (padded to
even), frames not counted (breaks silently), encoding under the final name (every frame), `duration` by fps instead of
its inverse (speed), no faststart (index),
images placed by row, a title over its neighbour (in its cell), normals over black (over white).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from threestudio_rf.export import media
from threestudio_rf.scenes.base import Rendering


def ramps(n: int, height: int, width: int) -> Tensor:
    """Smooth frames (n, 3, height, width) that differ from each other."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([torch.stack((x, y, torch.full_like(x, i / n))) for i in range(n)])


def decoded(path: Path) -> np.ndarray:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_png_is_exact_in_either_layout(tmp_path: Path):
    values = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, image in enumerate((values, values / 255, values.permute(1, 2, 0), values.permute(1, 2, 0) / 255)):
        read = np.array(Image.open(media.png(tmp_path / f"deep/er/{i}.png", image)))
        assert np.array_equal(read, values.permute(1, 2, 0).numpy())


def test_floats_are_clamped_and_rounded_and_grey_is_repeated():
    image = torch.tensor([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 7.0]).reshape(1, 2, 3)
    assert media.to_bytes(image)[..., 0].ravel().tolist() == [0, 0, 0, 1, 255, 255]
    assert media.to_bytes(image).shape == (2, 3, 3)
    for bad in (torch.full((3, 4, 4), torch.nan), torch.zeros(4, 4), torch.zeros(2, 4, 5), torch.zeros(3, 0, 4)):
        with pytest.raises(ValueError, match="an image must be"):
            media.to_bytes(bad)


@pytest.mark.parametrize("height, width", [(64, 48), (57, 63)])
def test_a_video_has_every_frame_at_its_size_padded_to_even(tmp_path: Path, height: int, width: int):
    frames = ramps(7, height, width)
    assert media.video(tmp_path / "turn.mp4", frames, 25) == [tmp_path / "turn.mp4"]
    read = decoded(tmp_path / "turn.mp4")
    assert read.shape == (7, height + height % 2, width + width % 2, 3)
    error = read[:, :height, :width] / 255.0 - frames.permute(0, 2, 3, 1).numpy()
    assert np.abs(error).mean() < 0.02 and np.abs(read[:, -1].astype(float) - read[:, -2]).mean() < 10
    assert [path.name for path in tmp_path.iterdir()] == ["turn.mp4"]


def half_a_file(path: str, *_: object, **__: object) -> Iterator[None]:
    Path(path).write_bytes(b"half a video")
    while True:
        yield


def first_frame_only(*args: object, encode: Callable[..., Any] = imageio_ffmpeg.write_frames, **options: object) -> Any:
    writer = encode(*args, **options)
    writer.send(None)
    writer.send((yield))
    try:
        while True:
            yield
    finally:
        writer.close()


@pytest.mark.parametrize("encoder", [half_a_file, first_frame_only])
def test_a_video_that_breaks_silently_becomes_images_and_a_gif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Callable[..., Any]
):
    monkeypatch.setattr(imageio_ffmpeg, "write_frames", encoder)
    frames = ramps(3, 16, 20)
    with pytest.warns(UserWarning, match=r"no video turn\.mp4 .*PNG images and a GIF"):
        paths = media.video(tmp_path / "turn.mp4", frames, 10)
    names = ["turn/00000.png", "turn/00001.png", "turn/00002.png", "turn.gif"]
    assert paths == [tmp_path / name for name in names]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(paths)
    assert np.array_equal(np.array(Image.open(paths[2])), media.to_bytes(frames[2]))


def test_a_full_disk_leaves_the_old_files_and_nothing_partial(tmp_path: Path, small_disk: None):
    noise = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (tmp_path / "turn.mp4").write_bytes(b"old")
    (tmp_path / "big.png").write_bytes(b"old")
    with pytest.warns(UserWarning, match="no video"), pytest.raises(OSError):
        media.video(tmp_path / "turn.mp4", noise, 10)
    with pytest.raises(OSError):
        media.png(tmp_path / "big.png", torch.cat(list(noise), dim=2))
    with pytest.raises(OSError):
        media.gif(tmp_path / "turn.gif", noise, 10)
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"turn.mp4": b"old", "big.png": b"old"}


def test_frames_must_exist_and_agree(tmp_path: Path):
    for frames in ([], [torch.zeros(3, 4, 4), torch.zeros(3, 4, 6)]):
        with pytest.raises(ValueError, match="frames of one size"):
            media.video(tmp_path / "a.mp4", frames, 10)
        with pytest.raises(ValueError, match="frames of one size"):
            media.gif(tmp_path / "a.gif", frames, 10)
    with pytest.raises(ValueError, match="fps"):
        media.video(tmp_path / "a.mp4", ramps(2, 8, 8), 0)
    assert not list(tmp_path.iterdir())


def test_a_gif_loops_at_its_speed(tmp_path: Path):
    with Image.open(media.gif(tmp_path / "turn.gif", ramps(6, 15, 22), 12.5)) as read:
        frames = [(np.array(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(read)]
        assert read.info["loop"] == 0
    assert [duration for _, duration in frames] == [80] * 6
    assert frames[3][0].shape == (15, 22, 3)
    assert np.abs(frames[3][0] - media.to_bytes(ramps(6, 15, 22)[3]).astype(float)).mean() < 12


def test_a_contact_sheet_holds_each_image_in_its_cell_beside_its_label():
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    sheet = media.contact_sheet([("rgb", list(images)), ("opacity", list(images[:2, :1]))], cell=64)
    large = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    gap, left = 2, sheet.shape[2] - 3 * 82
    assert sheet.shape[:2] == (3, gap + 2 * (64 + gap)) and left > 40
    for column in range(3):
        x = left + column * 82
        assert torch.allclose(sheet[:, gap : gap + 64, x : x + 80], large[column], atol=1 / 255)
    grey = sheet[:, 2 * gap + 64 : 2 * gap + 128, left + 82 : left + 162]
    assert torch.allclose(grey, large[1, :1].expand(3, -1, -1), atol=1 / 255)
    assert sheet[:, gap : gap + 64, :left].amin() < 0.2 and sheet[:, gap + 66 :, left + 164 :].amin() == 1
    titled = media.contact_sheet([("", [images[0]])], titles=["front"], cell=96)
    assert titled[:, :12].amin() < 0.2
    long = media.contact_sheet([("", [images[0][:, :, :32]] * 2)], titles=["a very long title", ""], cell=64)
    assert long[:, :12, : long.shape[2] // 2].amin() < 0.5 and long[:, :12, long.shape[2] // 2 + 2 :].amin() == 1
    with pytest.raises(ValueError, match="at least one image"):
        media.contact_sheet([("rgb", [])])


def test_rows_show_normals_over_white_and_leave_out_what_is_missing():
    opacity = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    normal = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1) * opacity
    rgb = torch.zeros(1, 3, 1, 2)
    rows = dict(media.rendering_rows(Rendering(rgb, opacity, normal=normal)))
    assert list(rows) == ["rgb", "normal", "opacity"]
    assert rows["normal"][0][:, 0].T.tolist() == [[1, 1, 1], [0.5, 0.5, 0]]
    assert [label for label, _ in media.rendering_rows(Rendering(rgb, opacity))] == ["rgb", "opacity"]


def atoms(data: bytes) -> list[bytes]:
    """The names of the outermost boxes of an MP4 (ISO 14496-12), in order."""
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    return found


def test_the_index_of_a_video_comes_before_its_pictures(tmp_path: Path):
    media.video(tmp_path / "turn.mp4", ramps(3, 32, 32), 10)
    names = atoms((tmp_path / "turn.mp4").read_bytes())
    assert names.index(b"moov") < names.index(b"mdat")
