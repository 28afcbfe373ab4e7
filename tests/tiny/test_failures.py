"""What the judge refuses: bent views that are no longer their shape, and samples that the strict figure fails.

Seen to fail: the bent mask for the straight one, whole views labelled NONE, stored failures with the label of the view.
"""

from __future__ import annotations

import torch

from threestudio_rf.core.random import generator
from threestudio_rf.priors.tiny import load_tiny
from threestudio_rf.tiny.train.data.failures import BROKEN, FAILED, Failures, bent, failed_samples
from threestudio_rf.tiny.train.judging import STORED, JudgePart, refused_share
from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.figures.strict import nearest_view_iou
from threestudio_rf.tiny.world.judge import Judge
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import random_world


def test_a_bent_view_knows_how_much_of_its_outline_is_left() -> None:
    world = random_world(2, 5, size=32)
    mask = world.mask.float() / 255
    image = world.images(torch.tensor([[1.0, 0, 0]]).expand(len(mask), 3), torch.zeros(len(mask), 3))
    out, same = bent(image, mask, generator(0, 0, "bent"))
    assert out.shape == image.shape and (same >= 0).all() and (same <= 1).all()
    assert same.min() < BROKEN and same.max() > BROKEN and not torch.equal(out, image)
    seen = out[:, 0] > 0.15
    either = (seen | (mask[:, 0] > 0.5)).flatten(1).sum(1)
    again = (seen & (mask[:, 0] > 0.5)).flatten(1).sum(1) / either
    plain = torch.tensor([len(SHAPES[name].parts) == 1 for name in SHAPES for _ in range(2)])
    assert (again - same)[plain].abs().median() < 0.1


def test_failed_samples_are_those_that_the_strict_figure_fails() -> None:
    found = failed_samples(load_tiny("tiny_sd3"), ["chair", "table"], 6, 3, views=60)
    again = failed_samples(load_tiny("tiny_sd3"), ["chair", "table"], 6, 3, views=60)
    assert 0 < len(found.colour) <= 6 and torch.equal(found.image, again.image)
    images = found.image.float() / 255
    best = torch.maximum(
        *(nearest_view_iou(images, SHAPES[name], cameras=BankCameras(60)) for name in ("chair", "table"))
    )
    assert (
        torch.minimum(*(nearest_view_iou(images, SHAPES[n], cameras=BankCameras(60)) for n in ("chair", "table")))
        < FAILED + 0.02
    ).all()
    assert best.max() < 1


def test_broken_views_and_stored_failures_are_none_of_the_shapes() -> None:
    world = random_world(2, 5)
    stored = Failures(torch.full((3, 3, 64, 64), 77, dtype=torch.uint8), torch.tensor([4, 4, 4]))
    part = JudgePart(Judge(), world, failures=stored, batch=400)
    drawn = part.draw(generator(0, 1, "judge"))
    mine = (drawn.image == 77 / 255).flatten(1).all(1)
    assert mine.float().mean().item() - STORED < 0.06 and mine.any()
    assert (drawn.shape[mine] == len(SHAPES)).all() and (drawn.colour[mine] == 4).all()
    none = (drawn.shape == len(SHAPES)).float().mean()
    assert mine.float().mean() < none < 0.6
    loss, figures = part.loss(0, generator(0, 2, "judge"))
    assert loss.isfinite() and set(figures) == {"shape", "colour"}
    assert 0 <= refused_share(Judge(), stored) <= 1
