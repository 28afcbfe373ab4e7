"""Ctrl-C, SIGTERM and SIGUSR1 (a cluster's last warning): finish the step, save, go. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from threestudio_rf.app.errors import INTERRUPTED, TERMINATED

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class Stop:
    """`with Stop() as stop: ... if stop.asked: ...`; handlers are put back afterwards. Outside the main thread, where
    no handler can be set, nothing is ever asked."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code of that signal."""
        return INTERRUPTED if self.signal == signal.SIGINT else TERMINATED

    def ask(self) -> None:
        """Stop as the first Ctrl-C does."""
        if not self.asked:
            self.signal = signal.SIGINT

    def agree(self, asked: bool) -> None:
        """Stop as well when another process of the run was asked to."""
        if asked and not self.asked:
            self.signal = signal.SIGTERM

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for name in NAMES:
                number = getattr(signal, name, None)
                if number is not None:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
