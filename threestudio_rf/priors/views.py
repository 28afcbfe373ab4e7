"""Which prompt for which side of the object, and Perp-Neg's weights. Angles in degrees, azimuth 0 = front.

Everything is "side"; "front" if |azimuth| < front; "back" if |azimuth| > 180 - back; "overhead" if elevation >
overhead; the later rule wins (threestudio).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from threestudio_rf.priors.base import Condition

VIEWS = ("side", "front", "back", "overhead")
SIDE, FRONT, BACK, OVERHEAD = range(4)
OCTANTS = ("front", "front right", "right", "back right", "back", "back left", "left", "front left")
"""Sectors of 45 degrees around azimuth 0, 45, ..., named as the one who stands in front sees them."""
HEIGHTS = ("low", "raised", "high")
RAISED, HIGH = 15.0, 45.0
OCTANT_WORDS = tuple(f"{height} {octant}" for octant in OCTANTS for height in HEIGHTS)


def wrap(azimuth: Tensor) -> Tensor:
    """Azimuth in [-180, 180)."""
    return (azimuth + 180.0) % 360.0 - 180.0


def view_index(
    azimuth: Tensor, elevation: Tensor, *, front: float = 45.0, back: float = 45.0, overhead: float = 60.0
) -> Tensor:
    """(B,), (B,) -> long (B,) into VIEWS."""
    if azimuth.shape != elevation.shape:
        raise ValueError(
            f"azimuth, elevation: got {tuple(azimuth.shape)}, {tuple(elevation.shape)}, expected one shape"
        )
    turn = wrap(azimuth).abs()
    index = torch.full(azimuth.shape, SIDE, dtype=torch.long, device=azimuth.device)
    index[turn < front] = FRONT
    index[turn > 180.0 - back] = BACK
    index[elevation > overhead] = OVERHEAD
    return index


def octant_index(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """(B,), (B,) -> long (B,) into OCTANT_WORDS: the nearest multiple of 45 degrees; low up to 15 degrees of elevation,
    high above 45."""
    octant = torch.round(torch.remainder(azimuth, 360.0) / 45.0).long() % len(OCTANTS)
    height = (elevation > RAISED).long() + (elevation > HIGH).long()
    return len(HEIGHTS) * octant + height


def view_prompts(
    prompt: str,
    *,
    pattern: str = "{prompt}, {view} view",
    overrides: Mapping[str, str] | None = None,
    fits: Callable[[str], bool] | None = None,
    views: Sequence[str] = VIEWS,
) -> list[str]:
    """The prompts of `views` in their order; `overrides` replaces the whole text of a view.

    `fits(text)` says whether a prior reads a text to its end. Where it does not, words are taken from the end of
    the prompt, never from the view, and one warning names them. ValueError for an unknown view or pattern.
    """
    overrides = overrides or {}
    unknown = sorted(set(overrides) - set(views))
    if unknown or "{prompt}" not in pattern:
        raise ValueError(f"views: got {unknown}, pattern {pattern!r}, expected {views} and '{{prompt}}' in the pattern")
    kept = prompt.split(" ")

    def texts() -> list[str]:
        text = " ".join(kept).rstrip(" ,;")
        return [pattern.replace("{view}", view).replace("{prompt}", text) for view in views]

    cut: list[str] = []
    while fits is not None and len(kept) > 1 and not all(fits(text) for text in texts()):
        cut.insert(0, kept.pop())
    if cut:
        warnings.warn(
            f"the prompt is too long for this prior and its view words; left out: {' '.join(cut)!r}", stacklevel=2
        )
    plain = texts() if cut else [pattern.replace("{view}", view).replace("{prompt}", prompt) for view in views]
    return [overrides.get(view, text) for view, text in zip(views, plain, strict=True)]


def unreachable_views(
    azimuth: tuple[float, float],
    elevation: tuple[float, float],
    *,
    front: float = 45.0,
    back: float = 45.0,
    overhead: float = 60.0,
) -> list[str]:
    """Views that no camera of these ranges (low, high) ever asks for, in the order of VIEWS."""
    turns = torch.linspace(*azimuth, 7201, dtype=torch.float64).repeat(2)
    heights = torch.tensor(elevation, dtype=torch.float64).repeat_interleave(7201)
    seen = set(view_index(turns, heights, front=front, back=back, overhead=overhead).tolist())
    return [view for i, view in enumerate(VIEWS) if i not in seen]


class PerpNeg(NamedTuple):
    """Per camera: shares (B, 4) of VIEWS in the positive condition, two negative views (B, 2), weights (B, 2) <= 0."""

    positive: Tensor
    negative: Tensor
    weights: Tensor


def decay(r: Tensor, a: float, b: float, c: float) -> Tensor:
    """The weight a exp(-b r) + c at r; the letters of `Curves`."""
    return a * torch.exp(-b * r) + c


class Curves(NamedTuple):
    """Perp-Neg's (a, b, c) of f(r) = a exp(-b r) + c, named as in threestudio and with its numbers.

    In front f_fs weighs the front view and f_sf the side view, behind f_fsb the front and f_sb the side view.
    """

    f_fs: tuple[float, float, float] = (4.0, 0.5, -2.426)
    f_sf: tuple[float, float, float] = (4.0, 0.5, -2.426)
    f_fsb: tuple[float, float, float] = (1.0, 0.5, 0.967)
    f_sb: tuple[float, float, float] = (1.0, 0.5, -0.606)


CURVES = Curves()


def perp_neg_weights(azimuth: Tensor, elevation: Tensor, *, overhead: float = 60.0, curves: Curves = CURVES) -> PerpNeg:
    """Perp-Neg (Armandpour et al. 2023) as threestudio weighs it, w = -f; angles (B,).

    |azimuth| < 90, r = 1 - |azimuth|/90: positive r front + (1-r) side; negative front f_fs(r), side f_sf(1-r). Else
    r = 2 - |azimuth|/90: positive r side + (1-r) back; negative side f_sb(r), front f_fsb(r). Above `overhead`: its
    own prompt, zero weights.
    """
    turn = wrap(azimuth).abs()
    ahead, above = turn < 90.0, elevation > overhead
    r = torch.where(ahead, 1.0 - turn / 90.0, 2.0 - turn / 90.0)
    positive = turn.new_zeros(len(turn), 4)
    positive[:, FRONT] = torch.where(ahead, r, 0.0)
    positive[:, SIDE] = torch.where(ahead, 1.0 - r, r)
    positive[:, BACK] = torch.where(ahead, 0.0, 1.0 - r)
    positive[above] = torch.eye(4).to(positive)[OVERHEAD]
    front_weight = torch.where(ahead, decay(r, *curves.f_fs), decay(r, *curves.f_fsb))
    side_weight = torch.where(ahead, decay(1.0 - r, *curves.f_sf), decay(r, *curves.f_sb))
    weights = -torch.stack([front_weight, side_weight], 1)
    negative = torch.tensor([FRONT, SIDE], device=turn.device).expand(len(turn), 2)
    return PerpNeg(positive, negative, weights.masked_fill(above[:, None], 0.0))


def mix(views: Condition, shares: Tensor) -> Condition:
    """Condition of B samples as a linear mixture, `shares` (B, N), of the N prompts of `views`; masks are joined."""
    if shares.ndim != 2 or shares.shape[1] != len(views):
        raise ValueError(f"shares: got {tuple(shares.shape)}, expected (B, {len(views)})")
    return Condition({name: _mixed(x, shares) for name, x in views.tensors.items()})


def _mixed(x: Tensor, shares: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        kept: Tensor = torch.tensordot((shares != 0).to(x.device, torch.float32), x.float(), dims=1) > 0
        return kept
    mixed: Tensor = torch.tensordot(shares.to(x), x, dims=1)
    return mixed
