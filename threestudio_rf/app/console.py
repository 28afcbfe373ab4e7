"""Messages, warnings and progress on the terminal; all of them go to log.txt as well."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from threestudio_rf.core.files import own_file

LOG = logging.getLogger("threestudio_rf")
PLAIN_EVERY = 30.0


class _Terminal(logging.Handler):
    """Information to stdout, the rest to stderr, above a progress bar. A closed pipe is passed on, not printed."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        prefix = "warning: " if record.levelno == logging.WARNING else ""
        from tqdm import tqdm

        tqdm.write(prefix + record.getMessage(), file=stream)
        stream.flush()


class _File(logging.FileHandler):
    """log.txt; where it cannot be written its lines are lost in silence, the terminal still shows them."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            return

    def handleError(self, record: logging.LogRecord) -> None:
        return


def safe_streams() -> None:
    """Characters that the console's encoding lacks are replaced, never an exception (locale C)."""
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def open_log(level: str, file: Path | None = None) -> None:
    """Messages of the project to the terminal at `level`, and all of them to `file` where one is given."""
    close_log()
    LOG.setLevel(logging.DEBUG)
    LOG.propagate = False
    LOG.disabled = False  # Hydra's logging set-up disables every logger it does not know
    terminal = _Terminal()
    terminal.setLevel(getattr(logging, level.upper()))
    LOG.addHandler(terminal)
    if file is not None:
        handler = _File(own_file(file), encoding="utf-8", errors="backslashreplace", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.addHandler(handler)
    warnings.showwarning = _show_warning


def traceback_place() -> str:
    """Where the traceback of an error is to be found."""
    files = [handler.baseFilename for handler in LOG.handlers if isinstance(handler, _File)]
    return f"the traceback is in {files[0]}" if files else "log_level=debug shows the traceback"


def close_log() -> None:
    """Close the files of the last run."""
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
        handler.close()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings reach the user; those of libraries are kept in log.txt."""
    if "threestudio_rf" in Path(filename).parts and issubclass(category, UserWarning):
        LOG.warning("%s", message)
    else:
        LOG.debug("%s: %s (%s)", category.__name__, message, filename)


def encodes(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has all characters of `text`."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class Progress:
    """A bar with it/s and ETA on a terminal, one plain line every half minute elsewhere."""

    def __init__(self, total: int, initial: int = 0) -> None:
        from tqdm import tqdm

        stream = sys.stderr
        self.total, self.step, self.first = total, initial, initial
        self.begun = self.told = time.monotonic()
        self.bar = tqdm(
            total=total,
            initial=initial,
            disable=None,
            file=stream,
            ascii=not encodes(stream, "█▏"),
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def update(self, step: int, values: Mapping[str, str]) -> None:
        """`step` steps are finished; `values` are shown as they are."""
        self.bar.set_postfix(values, refresh=False)
        self.bar.update(step - self.step)
        self.step = step
        now = time.monotonic()
        if self.bar.disable and (now - self.told >= PLAIN_EVERY or step == self.total):
            self.told = now
            rate = (step - self.first) / max(now - self.begun, 1e-9)
            left = (self.total - step) / max(rate, 1e-9)
            shown = "  ".join(f"{name} {value}" for name, value in values.items())
            LOG.info("step %d/%d  %s  %.2f it/s  ETA %d s", step, self.total, shown, rate, left)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


def memory() -> str:
    """Memory of this process, of the GPU when one is used."""
    import psutil
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB VRAM"
    return f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB"


def peak_memory_mb() -> float:
    """The largest memory so far: of the GPU when one is used, else of this process, in MB (10^6 bytes)."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e6
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
