"""The cycle collector comes back as it was.

Seen to fail: never switched on again, switched on where it was off, not off inside.
"""

from __future__ import annotations

import gc

import pytest

from threestudio_rf.core.collector import uncollected


def test_it_is_off_inside_and_as_before_afterwards_whatever_happens() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer one decides"
        raise KeyError
    assert gc.isenabled()


def test_it_decorates() -> None:
    assert not uncollected()(gc.isenabled)() and gc.isenabled()
