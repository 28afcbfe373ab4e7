"""Pictures and videos that a user keeps: PNG, MP4, GIF and contact sheets, each file whole or absent."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.core.files import temporary, write_files
from threestudio_rf.export.letters import typeface
from threestudio_rf.scenes.base import Rendering

Frames = Tensor | Sequence[Tensor]
Rows = Sequence[tuple[str, Sequence[Tensor]]]


def to_bytes(image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of a float image in [0, 1] (clamped) or a uint8 image, (3, H, W), (H, W, 3) or grey (1, H, W).

    Channels are taken first where both readings fit. Raises ValueError for another shape, NaN or infinity.
    """
    if image.ndim != 3 or (image.shape[0] not in (1, 3) and image.shape[2] != 3) or not image.numel():
        raise ValueError(f"an image must be (3, H, W), (H, W, 3) or (1, H, W), got {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.shape[0] in (1, 3):
        image = image.permute(1, 2, 0)
    if image.dtype != torch.uint8:
        if not torch.isfinite(image).all():
            raise ValueError(f"an image must be finite, got {int((~torch.isfinite(image)).sum())} values that are not")
        image = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return image.expand(-1, -1, 3).contiguous().numpy()


def _frames(frames: Frames, fps: float) -> list[np.ndarray]:
    if fps <= 0:
        raise ValueError(f"fps must be positive, got {fps}")
    pictures = [to_bytes(frame) for frame in frames]
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"a video needs frames of one size, got {len(pictures)} frames of sizes {sizes}")
    return pictures


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _gif(pictures: Sequence[np.ndarray], fps: float) -> bytes:
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    buffer = io.BytesIO()
    duration = max(20, 10 * round(100 / fps))
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=duration, loop=0)
    return buffer.getvalue()


def png_bytes(image: Tensor) -> bytes:
    """One image as a PNG file, see `to_bytes`."""
    return _png(to_bytes(image))


def png(path: Path | str, image: Tensor) -> Path:
    """Write one image, see `to_bytes`. Raises OSError and leaves the old file when the disk is full."""
    write_files({Path(path): png_bytes(image)})
    return Path(path)


def gif(path: Path | str, frames: Frames, fps: float) -> Path:
    """Write an endless animation; the format stores hundredths of a second. Raises as `png` and `video` do."""
    write_files({Path(path): _gif(_frames(frames, fps), fps)})
    return Path(path)


def _mp4(path: Path, pictures: Sequence[np.ndarray], fps: float) -> None:
    """Encode with H.264, then open the result again: a full disk breaks the file without an exception."""
    import imageio_ffmpeg

    height, width = pictures[0].shape[:2]
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    size = (width + width % 2, height + height % 2)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        quality=8,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )
    try:
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(np.pad(picture, pad, mode="edge")))
    finally:
        writer.close()
    count = imageio_ffmpeg.count_frames_and_secs(str(path))[0] if path.exists() else 0
    if count != len(pictures):
        raise OSError(f"the encoder stored {count} of {len(pictures)} frames")


def video(path: Path | str, frames: Frames, fps: float) -> list[Path]:
    """Write an MP4 of `frames` (N, 3, H, W) and return its path; odd sizes are padded by one row or column, and its
    index comes first, so that a browser plays it before the whole file has come.

    The file is encoded under a temporary name and counted before it takes its own. If there is no encoder or the
    result is broken, a warning says why and the frames are written as `<stem>/00000.png ...` and `<stem>.gif`, whose
    paths are returned. Raises ValueError for no frames, frames of several sizes or fps <= 0, OSError when the
    replacement cannot be written either; then nothing partial is left.
    """
    path = Path(path)
    pictures = _frames(frames, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path.with_suffix(".mp4"))
    try:
        _mp4(partial, pictures, fps)
        partial.replace(path)
        return [path]
    except (OSError, RuntimeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        warnings.warn(f"no video {path.name} ({reason}); writing PNG images and a GIF instead", stacklevel=2)
    finally:
        partial.unlink(missing_ok=True)
    files = {path.with_suffix("") / f"{i:05d}.png": _png(picture) for i, picture in enumerate(pictures)}
    files[path.with_suffix(".gif")] = _gif(pictures, fps)
    write_files(files)
    return list(files)


def contact_sheet(rows: Rows, *, titles: Sequence[str] = (), cell: int = 128) -> Tensor:
    """One picture of labelled rows of images, (3, H, W) in [0, 1], on white.

    Images, see `to_bytes`, are scaled to the height `cell`: whole multiples repeat pixels, other sizes are resampled.
    `titles` stand above the columns, smaller where they are wider; text whose letters no font here has is numbered, as
    `typeface` tells. Raises ValueError for no images.
    """
    from PIL import Image, ImageDraw

    pictures = [[_scaled(to_bytes(image), cell) for image in images] for _, images in rows]
    if not any(pictures):
        raise ValueError(f"a contact sheet needs at least one image, got {len(rows)} empty rows")
    size = max(12, cell // 8)
    heads, labels = typeface(titles), typeface([label for label, _ in rows])
    font, gap = labels.at(size), max(2, cell // 32)
    left = gap + max(int(font.getlength(label)) for label in labels.lines) + gap
    top = gap + (size + gap if titles else 0)
    wide = max(picture.shape[1] for row in pictures for picture in row) + gap
    sheet = Image.new("RGB", (left + wide * max(map(len, pictures)), top + (cell + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(heads.lines):
        fits = min(1.0, (wide - gap) / max(1.0, heads.at(size).getlength(title)))
        draw.text((left + wide * column, gap), title, fill="black", font=heads.at(max(6, size * fits)))
    for row, label in enumerate(labels.lines):
        y = top + (cell + gap) * row
        draw.text((gap, y + (cell - size) // 2), label, fill="black", font=font)
        for column, picture in enumerate(pictures[row]):
            sheet.paste(Image.fromarray(picture), (left + wide * column, y))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).float() / 255


def _scaled(picture: np.ndarray, height: int) -> np.ndarray:
    from PIL import Image

    rows, columns = picture.shape[:2]
    whole = height % rows == 0
    resample = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(picture).resize((max(1, round(columns * height / rows)), height), resample))


def pictures_of(rendering: Rendering) -> dict[str, Tensor]:
    """The maps rgb, normal and opacity as pictures (B, 3, H, W). Normals n are shown as (1 + n) / 2 over white: x, y, z
    are red, green, blue; they are missing where the rendering has none."""
    shown = {"rgb": rendering.rgb}
    if rendering.normal is not None:
        shown["normal"] = (1 + rendering.normal) / 2 + (1 - rendering.opacity) / 2
    return shown | {"opacity": rendering.opacity.expand_as(rendering.rgb)}


def rendering_rows(rendering: Rendering) -> Rows:
    """The rows of a contact sheet: `pictures_of`."""
    return [(name, list(images)) for name, images in pictures_of(rendering).items()]
