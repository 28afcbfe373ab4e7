"""Edits whose truth is known.

Oracle: the judge, which never saw these views.

Seen to fail: the same colour or shape drawn again, both changed at once, another background or camera after the edit,
`outside` of one object only, prompts of source and target exchanged.
"""

from __future__ import annotations

import torch

from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.pairs import EDITS, held_out_pairs
from threestudio_rf.tiny.world.shapes import SHAPES, TWELVE
from threestudio_rf.tiny.world.truth import subject
from threestudio_rf.tiny.world.views import COLOURS


def test_an_edit_changes_what_it_names_and_nothing_outside() -> None:
    found = held_out_pairs(32, 7, size=24)
    assert tuple(found) == EDITS and torch.equal(found["colour"].before, found["shape"].before)
    for kind, pairs in found.items():
        before, after = ([subject(text) for text in texts] for texts in (pairs.source, pairs.target))
        names, colours = list(SHAPES), list(COLOURS)
        for old, new, shape, colour in zip(before, after, *pairs.wanted, strict=True):
            assert new is not None and (new.solid.name, new.colours) == (names[shape], (colours[colour],))
            assert old is not None and names[shape] in TWELVE
            assert (old.solid == new.solid, old.colours == new.colours) == (kind == "colour", kind == "shape")
        same = (pairs.before == pairs.after).all(1, keepdim=True)
        assert bool(same[pairs.outside].all()) and 0.2 < pairs.outside.float().mean() < 0.95
        assert pairs.before.shape == pairs.after.shape == (32, 3, 24, 24)
        gap = (pairs.before - pairs.after).abs().amax(1, keepdim=True)
        assert (gap[~pairs.outside] > 0.05).float().mean() > 0.3


def test_the_judge_sees_the_wanted_looks_in_the_true_pictures() -> None:
    judge = load_judge(weights_folder())
    for pairs in held_out_pairs(24, 8).values():
        verdict = judge(pairs.after)
        right = (verdict.shape.argmax(-1) == pairs.wanted.shape) & (verdict.colour.argmax(-1) == pairs.wanted.colour)
        assert right.float().mean() > 0.9


def test_pairs_depend_on_the_seed_only_and_rows_can_be_taken() -> None:
    one, again, other = held_out_pairs(4, 3), held_out_pairs(4, 3), held_out_pairs(4, 4)
    assert torch.equal(one["shape"].after, again["shape"].after)
    assert not torch.equal(one["shape"].after, other["shape"].after)
    part = one["shape"].select(slice(1, 3))
    assert part.source == one["shape"].source[1:3] and torch.equal(part.after, one["shape"].after[1:3])
    assert part.wanted.shape.tolist() == one["shape"].wanted.shape[1:3].tolist()
