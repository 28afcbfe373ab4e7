"""What an edit hands out: untouched pixels, no outline of what was removed, detail that follows its edge.

Oracles: scipy's morphology and uniform filter, slopes of a least-squares fit in each window.

Seen to fail: small changes kept, strong ones kept in part; holes left open, the outline grown by the closing; detail
kept everywhere, or dropped wherever there is a change; the slope without its limits, over windows of another size;
detail above the prior's size left in the place of what was removed; the shift of the whole picture kept where the old
object was, or taken from the new object too; means of columns alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from threestudio_rf.app.tasks.blend import FLAT, carried, closed, grown, kept_edit, slope, window_mean
from threestudio_rf.app.tasks.desk import Given
from threestudio_rf.app.tasks.edit import delivered


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def square(size: int = 64, first: int = 16, last: int = 48, value: float = 1.0) -> Tensor:
    """A picture (1, 3, size, size) with one square."""
    x = torch.full((1, 3, size, size), 0.2)
    x[:, :, first:last, first:last] = value
    return x


def test_untouched_places_keep_their_pixels_and_strong_changes_are_whole() -> None:
    picture = 0.3 + 0.2 * noise(2, 3, 32, 32)
    plain = picture + 0.02 * (noise(2, 3, 32, 32) - 0.5)
    edited = plain + 0.01
    edited[:, :, 8:24, 8:24] = plain[:, :, 8:24, 8:24] + 0.4
    edited[:, :, 15:17, 15:17] = plain[:, :, 15:17, 15:17] + 0.05
    new, detail = kept_edit(picture, edited, plain, 0.2)
    assert torch.allclose(new[:, :, :4], picture[:, :, :4], atol=1e-6) and bool((detail[:, :, :4] == 1).all())
    change = new - picture
    assert torch.allclose(change[:, :, 10:13, 10:22], torch.full((2, 3, 3, 12), 0.4), atol=1e-3)
    assert torch.allclose(change[:, :, 15:17, 15:17], torch.full((2, 3, 2, 2), 0.04), atol=0.01), (
        "a hole is filled, and loses the shift of the picture, 0.01, as it looks like what lies around"
    )
    assert torch.allclose(kept_edit(picture, plain, plain, 0.2)[0], picture, atol=1e-6)


def test_what_is_removed_leaves_no_outline_and_what_stays_keeps_its_edge() -> None:
    picture = square()
    plain = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(picture, [2] * 4, mode="replicate"), 5, 1)
    gone, _ = kept_edit(picture, torch.full_like(picture, 0.2), plain, 0.15)
    outline = picture - plain
    assert (gone - 0.2).abs().mean() < 0.2 * outline.abs().mean() and (gone - 0.2).abs().max() < 0.15
    recoloured = 0.2 + 0.5 * (plain - 0.2)
    kept, _ = kept_edit(picture, recoloured, plain, 0.15)
    wanted = 0.2 + 0.5 * (picture - 0.2)
    inner = (slice(None), slice(None), slice(12, 52), slice(12, 52))
    assert (kept - wanted)[inner].abs().mean() < 0.4 * (recoloured - wanted)[inner].abs().mean()


def test_a_bared_background_is_that_which_lies_around_even_where_the_edit_shifted_all_of_it() -> None:
    picture = square() + 0.1 * torch.linspace(0, 1, 64)
    edited = 0.2 + 0.1 * torch.linspace(0, 1, 64).expand(1, 3, 64, 64) + 0.07
    edited = edited.clone()
    edited[:, 0, 26:38, 26:38] = 1.0
    kept, _ = kept_edit(picture, edited, picture, 0.15)
    wanted = 0.2 + 0.1 * torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    band = torch.zeros(64, 64, dtype=torch.bool)
    band[13:51, 13:51] = True
    band[23:41, 23:41] = False
    assert (kept - wanted)[..., band].abs().max() < 0.02 < 0.05 < (edited - wanted)[..., band].abs().min()
    assert (kept - edited)[:, :, 28:36, 28:36].abs().max() < 0.01, "the new object is the edit's"


def test_what_is_known_is_carried_smoothly_into_what_is_not() -> None:
    ramp = torch.linspace(0, 1, 48).expand(1, 1, 48, 48)
    known = torch.ones(1, 1, 48, 48)
    known[..., 16:32, 16:32] = 0
    found = carried(ramp * known + 9 * (1 - known), known)
    assert (found - ramp)[..., 16:32, 16:32].abs().max() < 0.12 and (found - ramp)[..., :8, 10:38].abs().max() < 0.03
    assert torch.allclose(carried(torch.full((1, 2, 48, 48), 0.3), known), torch.full((1, 2, 48, 48), 0.3), atol=1e-5)
    assert carried(ramp, torch.zeros_like(known)).isfinite().all()


@pytest.mark.parametrize("radius", [1, 3])
def test_closing_and_growing_are_those_of_morphology(radius: int) -> None:
    w = (noise(1, 1, 40, 40) > 0.9).float() * noise(1, 1, 40, 40)
    w[..., : 2 * radius, :] = w[..., -2 * radius :, :] = w[..., : 2 * radius] = w[..., -2 * radius :] = 0
    size = (2 * radius + 1,) * 2
    assert np.array_equal(grown(w, radius)[0, 0], ndimage.grey_dilation(w[0, 0].numpy(), size=size))
    assert np.array_equal(closed(w, radius)[0, 0], ndimage.grey_closing(w[0, 0].numpy(), size=size))


def test_means_over_windows_are_those_of_a_uniform_filter_that_repeats_the_border() -> None:
    z = noise(1, 2, 20, 33)
    wanted = ndimage.uniform_filter(z.double().numpy(), size=(1, 1, 7, 7), mode="nearest")
    assert np.allclose(window_mean(z, 3), wanted, atol=1e-6)


def test_the_slope_is_that_of_a_least_squares_fit_in_each_window() -> None:
    x, share = noise(1, 3, 24, 24), torch.tensor([0.2, 0.7, 1.4]).reshape(1, 3, 1, 1)
    y = share * x + 0.1 * torch.linspace(0, 1, 24)
    found = slope(y, x, 2)[0, :, 2:-2, 2:-2]
    for channel, row, column in ((0, 5, 5), (1, 12, 3), (2, 8, 16)):
        window = (slice(row, row + 5), slice(column, column + 5))
        a, b = (z[0, channel][window].double().flatten() for z in (y, x))
        a, b = a - a.mean(), b - b.mean()
        wanted = ((a * b).mean() + FLAT) / ((b * b).mean() + FLAT)
        assert found[channel, row, column].item() == pytest.approx(min(1, wanted.item()), rel=1e-3)
    assert bool((slope(-x, x, 2) == 0).all()) and bool((slope(torch.ones_like(x), torch.ones_like(x), 2) == 1).all())


def test_detail_above_the_priors_size_goes_with_what_is_removed() -> None:
    image = square(128, 32, 96)[0]
    small = torch.nn.functional.interpolate(image[None], size=(64, 64), mode="bilinear", antialias=True)
    given = Given("x", image, None, small, small, small)
    gone = delivered(given, torch.full_like(small, 0.2), 0.15)[0]
    assert (gone - 0.2).abs().mean() < 0.004
    assert torch.allclose(delivered(given, small, 0.15)[0], image, atol=1e-5)
