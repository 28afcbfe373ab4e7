"""Pictures that a user gives: read whatever its format, shown as it would be seen, fitted to a prior's size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import UserError, user_path

SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
UNSAFE = ("EPS",)
"""Formats that Pillow hands to another program."""


def read_picture(path: Path | str, key: str) -> Tensor:
    """(3, H, W) in [0, 1]. EXIF rotation is applied, 16 bits are scaled, transparency is white, of an animation it is
    the first frame. `key` is the setting that names the file.

    Raises UserError for a file that is missing, broken, too large, or whose numbers are no picture's.
    """
    picture = _opened(path, key)
    return torch.from_numpy(_rgb(picture, f"{key}={path}")).permute(2, 0, 1).contiguous()


def read_mask(path: Path | str, key: str) -> Tensor:
    """(1, H, W) in [0, 1], 1 where a picture may change: white is 1, black and what is transparent 0.

    Of a picture in one colour with transparency the opaque part is 1, and a mask, or an opaque part, whose values are 0
    and 1 is taken as meant; both are told. Raises UserError as `read_picture`.
    """
    picture, name = _opened(path, key), f"{key}={path}"
    if picture.mode in WITH_ALPHA or "transparency" in picture.info:
        layers = torch.from_numpy(np.asarray(picture.convert("RGBA")).astype(np.float32) / 255).permute(2, 0, 1)
        colour, alpha = layers[:3], layers[3:]
        shown = colour[:, alpha[0] > 0]
        if shown.shape[1] and float((shown.amax(1) - shown.amin(1)).max()) == 0 and float(alpha.min()) < 1:
            LOG.info("%s has one colour: its opaque part is the part that may change", name)
            return _meant(alpha, name)
        return _meant(colour.mean(0, keepdim=True) * alpha, name)
    return _meant(torch.from_numpy(_rgb(picture, name)).mean(2)[None], name)


def _meant(mask: Tensor, name: str) -> Tensor:
    """A mask whose values are 0 and 1 (of 255) as one of black and white."""
    if 0 < float(mask.max()) <= 1.5 / 255:
        LOG.info("%s has the values 0 and 1: 1 is taken for white", name)
        mask = mask / mask.max()
    return mask.contiguous()


def _opened(path: Path | str, key: str) -> Any:
    """A PIL picture, turned as its EXIF data say. UserError as `read_picture`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = user_path(path, key)
    if not path.is_file():
        raise UserError(f"{key}={path}: {'a folder, expected a picture' if path.is_dir() else 'no such file'}")
    Image.init()
    try:
        with Image.open(path, formats=[name for name in Image.OPEN if name not in UNSAFE]) as file:
            frames = getattr(file, "n_frames", 1)
            if frames > 1:
                LOG.info("%s=%s has %d frames: the first is used", key, path, frames)
            file.load()
            picture = ImageOps.exif_transpose(file)
    except Image.DecompressionBombError as error:
        raise UserError(f"{key}={path}: the picture is too large ({error})") from None
    except UnidentifiedImageError:
        raise UserError(f"{key}={path}: not a picture (PNG, JPEG, WebP and others are read)") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{key}={path}: the file is broken ({error})") from None
    return picture


def suffixes() -> set[str]:
    """The endings of files that are read, lower case, with their dot."""
    from PIL import Image

    return {end for end, name in Image.registered_extensions().items() if name in Image.OPEN and name not in UNSAFE}


def _rgb(picture: Any, name: str) -> np.ndarray:
    """float32 (H, W, 3) of a PIL picture of any mode; `name` is what it is called in messages."""
    if picture.mode in SIXTEEN_BITS:
        return _grey(np.asarray(picture), 65535)
    if picture.mode in ("I", "F"):
        return _ranged(np.asarray(picture), name)
    if picture.mode in WITH_ALPHA or "transparency" in picture.info:
        layers = np.asarray(picture.convert("RGBA")).astype(np.float32) / 255
        return layers[:, :, :3] * layers[:, :, 3:] + (1 - layers[:, :, 3:])
    return np.asarray(picture.convert("RGB")).astype(np.float32) / 255


def _ranged(values: np.ndarray, name: str) -> np.ndarray:
    """A picture in one channel whose format does not say what white is: the first of 1 (for numbers with a point), 255
    and 65535 that no value exceeds, which is told. UserError for values below 0, above those or not finite."""
    low, high = float(values.min()), float(values.max())
    whites = [white for white in (1, 255, 65535) if high <= white and (white > 1 or values.dtype.kind == "f")]
    if not np.isfinite(values).all() or low < 0 or not whites:
        raise UserError(f"{name}: a picture whose numbers go from {low:g} to {high:g}, expected 0 to 1, 255 or 65535")
    LOG.info("%s has numbers up to %g: 0 to %d are taken for black to white", name, high, whites[0])
    return _grey(values, whites[0])


def _grey(values: np.ndarray, white: int) -> np.ndarray:
    return np.repeat((values.astype(np.float32) / white).clip(0, 1)[:, :, None], 3, axis=2)


def fitted(image: Tensor, size: tuple[int, int], key: str) -> Tensor:
    """(1, C, height, width) of an image (C, H, W): scaled until it covers `size` (height, width), its middle kept.

    What is done to the picture is told.
    """
    height, width = size
    rows, columns = image.shape[-2:]
    if (rows, columns) == (height, width):
        return image[None]
    scale = max(height / rows, width / columns)
    large = (max(height, round(rows * scale)), max(width, round(columns * scale)))
    cut = "" if large == (height, width) else " and its middle is kept"
    LOG.info("%s is %d x %d: scaled to %d x %d%s", key, columns, rows, width, height, cut)
    scaled = F.interpolate(image[None], size=large, mode="bilinear", antialias=True, align_corners=False)
    top, left = (large[0] - height) // 2, (large[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width]


def spread(small: Tensor, size: tuple[int, int], rows: slice | None = None) -> Tensor:
    """The inverse of `fitted`: `small` (B, C, h, w) scaled back to the part of a picture of `size` (H, W) that it was
    taken from, 0 around it: (B, C, H, W), or only its `rows`, so that memory need not hold it several times."""
    high, wide = size
    part = rows or slice(0, high)
    height, width = small.shape[-2:]
    if (high, wide) == (height, width):
        return small[..., part, :]
    scale = max(height / high, width / wide)
    kept = (min(high, max(1, round(height / scale))), min(wide, max(1, round(width / scale))))
    top, left = (high - kept[0]) // 2, (wide - kept[1]) // 2
    first, last = (min(max(at - top, 0), kept[0]) for at in (part.start, part.stop))
    if rows is None or kept[0] < height:
        middle = F.interpolate(small, size=kept, mode="bilinear", antialias=True, align_corners=False)
        middle = middle[..., first:last, :]
    else:
        middle = F.interpolate(_rows(small, kept[0], first, last), size=(last - first, kept[1]), mode="bilinear")
    above = min(max(top - part.start, 0), part.stop - part.start)
    below = part.stop - part.start - above - middle.shape[-2]
    return F.pad(middle, (left, wide - kept[1] - left, above, below))


def _rows(x: Tensor, height: int, first: int, last: int) -> Tensor:
    """Rows first..last - 1 of x (B, C, h, w) scaled to `height` >= h rows, bilinear about the middles of pixels."""
    at = ((torch.arange(first, last) + 0.5) * (x.shape[-2] / height) - 0.5).clamp(0, x.shape[-2] - 1)
    lower = at.floor().long()
    upper = (lower + 1).clamp(max=x.shape[-2] - 1)
    return torch.lerp(x[..., lower, :], x[..., upper, :], (at - lower).to(x.dtype)[:, None])


def bounded(image: Tensor, side: int) -> Tensor:
    """image (C, H, W) scaled down until its longer side is `side`; as it is where it is no larger."""
    rows, columns = image.shape[-2:]
    if max(rows, columns) <= side:
        return image
    scale = side / max(rows, columns)
    size = (max(1, round(rows * scale)), max(1, round(columns * scale)))
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def check_mask(mask: Tensor, image: Tensor, group: str) -> None:
    """UserError for a mask (C, H, W) of another size than `image` (C, H, W), or one without a white part; `group` is
    the group of both settings."""
    if mask.shape[-2:] != image.shape[-2:]:
        shapes = [f"{x.shape[-1]} x {x.shape[-2]}" for x in (mask, image)]
        raise UserError(f"{group}.mask is {shapes[0]}, expected the size of {group}.image, {shapes[1]}")
    if not bool((mask.mean(0) >= 0.5).any()):
        raise UserError(
            f"{group}.mask has no white part (its largest value is {255 * float(mask.max()):.0f} of 255), so there is "
            "nothing to make anew"
        )


def hidden_part(mask: Tensor, image: Tensor, size: tuple[int, int], latent: Tensor, group: str) -> Tensor:
    """(1, 1, h, w), 1 where a latent (1, C, h, w) may change, 0 elsewhere: the white part of `mask` (C, H, W), fitted
    to pictures of `size`. UserError as `check_mask`, also where the fitted mask or the latent's has no white left."""
    check_mask(mask, image, group)
    white = fitted(mask.float(), size, f"{group}.mask").mean(1, keepdim=True) >= 0.5
    hidden = F.interpolate(white.float(), size=latent.shape[-2:]).to(latent.device)
    if not bool(hidden.any()):
        raise UserError(f"{group}.mask has no white part at the prior's size, so there is nothing to make anew")
    return hidden
