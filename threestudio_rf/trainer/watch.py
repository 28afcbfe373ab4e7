"""Whether the other processes of a run still live: each beats in the store of the rendezvous, and looks at the others.

A process that dies closes its connections, which ends a step of the others at once. One that is stopped, or whose
machine is gone, and one that dies while the others are still connecting, would leave them waiting: this ends them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

BEAT = 5.0
"""Seconds between two signs of life."""
ROUNDS = 12
"""So many own beats without one of another process: it is lost. Counted, not timed, since a cluster may stop all."""
GRACE = 10.0
"""Seconds for the program to end by itself before it is ended."""
LEFT = 2**40
"""What a process that has ended well adds to its beats."""


class Watch:
    """The beats of process `rank` of `size` in `store`, until `leave`. When another one is lost `free` is called once,
    which should make the program end; after `GRACE` seconds `end` ends it.

    `store` is used by this alone: one that is shared with a program that waits would wait as well.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        *,
        free: Callable[[], None],
        end: Callable[[int], object] = os._exit,
        beat: float = BEAT,
        grace: float = GRACE,
    ) -> None:
        self.store, self.rank, self.free, self.end = store, rank, free, end
        self.beat, self.grace = beat, grace
        self._over, self._rounds, self._gone = threading.Event(), 0, -1
        self._beats = dict.fromkeys((other for other in range(size) if other != rank), 0)
        self._missed = dict.fromkeys(self._beats, 0)
        for work in (self._look, self._watch):
            threading.Thread(target=work, daemon=True).start()

    def leave(self) -> None:
        """The others need not look at this process any more."""
        self._over.set()
        try:
            self.store.add(f"beats/{self.rank}", LEFT)
        except RuntimeError:
            return  # nobody is left to tell

    def lost(self) -> int | None:
        """One round: beat, look at the others; which of them is lost. RuntimeError where the store is gone."""
        self.store.add(f"beats/{self.rank}", 1)
        for other, before in list(self._beats.items()):
            now = self.store.add(f"beats/{other}", 0)
            self._beats[other] = now
            self._missed[other] = 0 if now != before else self._missed[other] + 1
            if now >= LEFT:
                del self._beats[other]
            elif self._missed[other] >= ROUNDS:
                return other
        return None

    def _look(self) -> None:
        while self._beats and self._gone < 0 and not self._over.wait(self.beat):
            try:
                gone = self.lost()
            except RuntimeError:
                gone = 0
            self._rounds, self._gone = self._rounds + 1, -1 if gone is None else gone

    def _watch(self) -> None:
        """Ends the program; a store whose process is stopped never answers, so another thread asks it."""
        missed, before = 0, -1
        while self._gone < 0 and missed < ROUNDS:
            if self._over.wait(self.beat) or not self._beats:
                return
            missed, before = 0 if self._rounds != before else missed + 1, self._rounds
        self.free()
        if not self._over.wait(self.grace):
            print(f"error: process {max(self._gone, 0)} of this run does not answer", file=sys.stderr, flush=True)
            self.end(1)


def client(host: str, port: int, attempt: str) -> Store:
    """A connection of its own to the store at this address, for the `attempt` of torchrun to start all of them."""
    store = TCPStore(host, port, None, False, timedelta(seconds=BEAT * ROUNDS / 2), wait_for_workers=False)
    return PrefixStore(f"watch/{attempt}", store)
