"""A process that is lost is found by its missing beats, and ends the others.

Seen to fail: beats that are not counted; a process that has left looked at further; a store that does not answer
waited for.
"""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from threestudio_rf.trainer.watch import ROUNDS, Watch

BEAT = 0.01


class Silent(dist.Store):
    """A store whose process is stopped: an answer never comes."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = threading.Event()

    def add(self, key: str, amount: int) -> int:
        self.answer.wait(20)
        return amount


class Ends:
    """What a watch did in the end."""

    def __init__(self) -> None:
        self.freed, self.code, self.over = 0, None, threading.Event()

    def free(self) -> None:
        self.freed += 1

    def end(self, code: int) -> None:
        self.code = code
        self.over.set()


def watched(store: dist.Store, rank: int, ends: Ends) -> Watch:
    return Watch(store, rank, 2, free=ends.free, end=ends.end, beat=BEAT, grace=BEAT)


def test_a_process_that_stops_beating_ends_the_other(capfd: pytest.CaptureFixture[str]) -> None:
    store, ends = dist.HashStore(), Ends()
    store.set_timeout(timedelta(seconds=5))
    store.add("beats/1", 3)
    watched(store, 0, ends)
    assert ends.over.wait(20) and (ends.freed, ends.code) == (1, 1)
    assert capfd.readouterr().err == "error: process 1 of this run does not answer\n"
    assert store.add("beats/0", 0) >= ROUNDS


def test_a_store_that_does_not_answer_ends_the_process() -> None:
    store, ends = Silent(), Ends()
    watched(store, 1, ends)
    assert ends.over.wait(20) and ends.code == 1
    store.answer.set()


def test_processes_that_beat_or_have_left_are_not_missed() -> None:
    store, (one, two) = dist.HashStore(), (Ends(), Ends())
    first, second = (Watch(store, rank, 2, free=ends.free, beat=1e6) for rank, ends in enumerate((one, two)))
    for _ in range(2 * ROUNDS):
        assert first.lost() is None and second.lost() is None
    assert [first.lost() for _ in range(ROUNDS + 1)] == [None] * ROUNDS + [1]
    assert second.lost() is None and first.lost() is None
    second.leave()
    assert [first.lost() for _ in range(2 * ROUNDS)] == [None] * 2 * ROUNDS
    first.leave()
