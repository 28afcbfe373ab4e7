"""Wrong settings, run folders and prior folders, drawn at random from a seed: what the program answers to them.

    python bench/fuzz.py [--settings 500] [--runs 100] [--priors 100] [--seed 0] [--show]

Every case is one command in this process, below a folder of its own. Right is: exit code 0 (the value is fine, or the
older good file was taken), or exit code 2 with one line; no exception's name is shown, nothing is written outside and
nothing in a file is executed. A case longer than LIMIT seconds is stopped: settings that ask for that much were taken
as good ones, anything else waits for what never comes. Prints the share of right answers of each kind, with --show the
wrong ones; exit code 1 when there are any.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz_cases import LIFT, priors_case, runs_case, settings_case

from threestudio_rf.app.cli.start import start

LIMIT, BUSY, STOPPED = 20, 123, 124
NAMES = re.compile(r"\b[A-Z]\w*(Error|Exception|Interrupt|Warning)\b|Traceback|<class |object at 0x")


class Answer(NamedTuple):
    """The exit code of a command, what it printed, and the files that it changed outside of its folder."""

    code: int
    out: str
    err: str
    outside: list[str]

    @property
    def fault(self) -> str:
        """What is wrong with it, "" when nothing is."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.outside:
            return f"written outside: {self.outside}"
        if found := NAMES.search(self.err + self.out):
            return f"shows {found[0]!r}"
        if self.code == 2 and (len(lines) != 1 or self.err.rstrip().splitlines()[-1] != lines[0].rstrip()):
            return "exit code 2 without one line"
        return "" if self.code in (0, 2, BUSY) else f"exit code {self.code}"


class Stopped(BaseException):
    """The limit of time."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises Stopped after some seconds."""

    def stop(*_: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(line: list[str], place: Path) -> Answer:
    """Run one command line in `place`/work, where only `place`/out may change."""
    before, home = list(place.glob("work/*")), Path.cwd()
    out, err = io.StringIO(), io.StringIO()
    os.chdir(place / "work")
    try:
        with redirect_stdout(out), redirect_stderr(err), limited(LIMIT):
            code = start(line)
    except Stopped:
        code = STOPPED
    finally:
        os.chdir(home)
    changed = sorted(str(path) for path in set(place.glob("work/*")) ^ set(before))
    if (place / "canary").read_text() != "untouched":
        changed.append("canary")
    return Answer(code, out.getvalue(), err.getvalue(), changed)


def prepared(place: Path) -> Path:
    """The folders and files that cases begin with; the place."""
    from PIL import Image

    (place / "work").mkdir(parents=True)
    (place / "canary").write_text("untouched")
    Image.new("RGB", (16, 16), "red").save(place / "work/picture.png")
    return place


def small_prior(place: Path) -> Path:
    """An SD of a few weights, never trained."""
    from threestudio_rf.priors.folder.architecture import make_tokenizer, make_vae
    from threestudio_rf.priors.folder.architecture_sd import make_sd_text_encoder, make_unet, save_sd

    tokenizer = make_tokenizer(["red", "ball"])
    unet = make_unet(16, channels=(16, 24), heads=2, seed=4)
    encoder = make_sd_text_encoder(tokenizer, width=16, heads=2, seed=5)
    vae = make_vae((8, 8, 16, 16), groups=4, scaling=1.5, shift=0.1, seed=3)
    return save_sd(prepared(place) / "base", vae=vae, unet=unet, text_encoder=encoder, tokenizer=tokenizer)


def finished_run(place: Path) -> Path:
    """A small run that the damaged ones are copies of."""
    found = answer([*LIFT, f"exp_root_dir={place}/base"], prepared(place))
    if found.code:
        raise RuntimeError(f"the run to be damaged failed: {found.err}")
    return next((place / "base" / "tiny").iterdir())


def cases(kind: str, count: int, seed: int, place: Path) -> Iterator[tuple[list[str], Answer]]:
    """`count` command lines of a kind ("settings", "runs", "priors") with what the program answers."""
    prepare, draw = {
        "settings": (prepared, settings_case),
        "runs": (finished_run, runs_case),
        "priors": (small_prior, priors_case),
    }[kind]
    thing = prepare(place)
    for number in range(count):
        line = draw(random.Random(f"{seed} {kind} {number}"), place, thing)
        found = answer(line, place)
        busy = kind == "settings" and found.code == STOPPED
        yield line, found._replace(code=BUSY) if busy else found
        shutil.rmtree(place / "out", ignore_errors=True)


def main() -> int:
    """Print the shares; exit code 1 when an answer is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in (("settings", 500), ("runs", 100), ("priors", 100)):
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true")
    options, wrong = parser.parse_args(), 0
    for kind in ("settings", "runs", "priors"):
        codes: dict[int, int] = {}
        faults = []
        with tempfile.TemporaryDirectory() as folder:
            count = getattr(options, kind)
            for line, found in cases(kind, count, options.seed, Path(folder) / "place") if count else ():
                codes[found.code] = codes.get(found.code, 0) + 1
                faults += [(found.fault, line, found.err[-300:])] if found.fault else []
        total = sum(codes.values())
        print(f"{kind}: {total - len(faults)} of {total} right; exit codes {dict(sorted(codes.items()))}", flush=True)
        for fault, line, err in faults if options.show else []:
            print(f"  {fault}\n    {' '.join(line)[-400:]!r}\n    {err!r}", flush=True)
        wrong += len(faults)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
