"""The strict figure forgives nothing: true views have it, melted and wrong ones do not.

Seen to fail: the mean of all views for the best one, the union left out, the mask of the border's mean.
"""

from __future__ import annotations

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.scenes.camera import random_views
from threestudio_rf.tiny.world.figures.strict import BankCameras, nearest_iou, nearest_view_iou, own_mask, seen_from
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, compose, render


def seen(name: str, size: int = 64) -> torch.Tensor:
    """Six held-out pictures of a shape, red."""
    shape = SHAPES[name]
    named = torch.tensor([COLOURS["red"]]).expand(6, -1)
    view = render(shape, random_views(6, generator(9, 0, "strict"), height=size, width=size))
    return compose(view, shape.palette(named), torch.full((6, 3), 0.8))


def test_the_best_view_counts_by_intersection_over_union() -> None:
    true = torch.zeros(2, 4, 4, dtype=torch.bool)
    true[0, :2], true[1, :, :1] = True, True
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :3] = True
    assert torch.allclose(nearest_iou(mask, true), torch.tensor([8 / 12, 0.0]))


def test_true_pictures_of_any_size_are_near_a_true_view_and_others_are_not() -> None:
    def nearest(images: torch.Tensor) -> torch.Tensor:
        return nearest_view_iou(images, SHAPES["cone"], cameras=BankCameras(views=500))

    near, large = nearest(seen("cone")), nearest(seen("cone", 128))
    assert near.min() > 0.93 and torch.allclose(near, large, atol=0.03)
    assert nearest(seen("star")).max() < 0.8
    blurred = torch.nn.functional.avg_pool2d(seen("cone"), 21, 1, 10, count_include_pad=False)
    assert nearest(blurred).mean() < near.mean() - 0.05
    assert nearest(torch.full((1, 3, 64, 64), 0.4)) == 0


def test_the_own_mask_is_what_differs_from_the_border() -> None:
    picture = torch.full((1, 3, 8, 8), 0.5)
    picture[:, 0, 2:5, 2:5] = 0.8
    picture[:, 0, 6, 6] = 0.7
    assert own_mask(picture).sum() == 9


def test_a_true_picture_is_seen_from_where_its_camera_stands() -> None:
    duck, cameras = SHAPES["duck"], BankCameras(views=400)
    camera = random_views(12, generator(9, 1, "strict"), height=64, width=64)
    colours = duck.palette(torch.tensor([COLOURS["yellow"]]))
    view = render(duck, camera)
    pictures = compose(view, colours.expand(12, -1, -1), torch.full((12, 3), 0.1))
    azimuth, elevation = seen_from(pictures, duck, colours[0], cameras=cameras)
    off = ((azimuth - camera.azimuth + 180) % 360 - 180).abs()
    assert off.median() < 12 and (off < 45).sum() >= 11
    assert (elevation - camera.elevation).abs().median() < 12
