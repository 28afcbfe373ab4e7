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
import hashlib
import io
import json
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

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.cli.start import start
from threestudio_rf.app.errors import PATHS
from threestudio_rf.app.settings.config import leaves

LIMIT, BUSY, STOPPED = 20, 123, 124
NAMES = re.compile(r"\b[A-Z]\w*(Error|Exception|Interrupt|Warning)\b|Traceback|<class |object at 0x")
VALUES = ("null", "true", "abc", "-1", "0", "1e30", "nan", "inf", "-inf", "[]", "[1,2", "{a:1}", "[[1]]", "''", "${x}")
VALUES += ("${oc.env:HOME}", "${now:%Y}", "\udce9", "2.5", "99999999999999999999", "[null]", "[abc,1]", "a=b", "'", "~")
VALUES += ("[1,[2]]", "{}", "!!python/object:os.system", "[true]", "[0.5]", "[3,2,1]", "a,b", "\n", "\t", "x" * 3000)
NONSENSE = ("nonsense", "=", "-x", "--config", "seed", "+seed=1", "~seed", "a.b.c=1", "prior=", "[]=1")
BYTES = (b"", b"\xff\xfe\x00", b"\x00" * 50, b"[" * 100_000, b'{"a":' * 100_000, b"[1]", b"7", b"null", b'"x"', b"{}")
ENTRIES: tuple[Any, ...] = (None, True, -1, 0, 2.5, 10**12, "x", "", [], [1], [[1]], {}, {"a": 1}, [None], ["x", "y"])
ENTRIES += (1e400,)
SMALL = ["prior=gaussian", "camera.sizes=[16]", "camera.eval_size=16", "camera.test_views=1"]
SMALL += ["scene.renderer.samples_per_ray=8", "scene.renderer.occupancy_resolution=4", "scene.encoding.log2_table=6"]
SMALL += [
    "camera.validation_views=1",
    "scene.encoding.levels=2",
    "export.resolution=8",
    "trainer.steps=2",
    "checkpoint.every=1",
]
LIFT = [*SMALL, "prompt=a red ball", "trainer.validate_every=0"]
OF_LIFT = ("prior", "scene", "camera", "loss", "optim", "trainer", "checkpoint", "export", "evaluate")
SAMPLE = ["task=sample", "prior=gaussian", "prompt=a red ball", "sample.n=1", "sample.steps=2"]
EDIT = ["task=edit", "prior=gaussian", "edit.source=red", "prompt=blue", "edit.image=picture.png", "edit.steps=2"]
LOOKS = (["task=export"], ["mode=validate"], ["task=evaluate", "evaluate.size=8"], ["trainer.steps=3"], ["mode=test"])


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


def settings_case(rng: random.Random, place: Path, _: Path) -> list[str]:
    """A command line with one to three wrong values, or without sense at all."""
    base, groups = rng.choice(((LIFT, OF_LIFT), (SAMPLE, ("sample",)), (EDIT, ("edit",))))
    keys = [key for key in leaves() if key not in PATHS and key.rpartition(".")[0].partition(".")[0] in ("", *groups)]
    wild = [f"{key}={value_for(rng, key)}" for key in rng.choices(keys, k=rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.1:
        wild.append(rng.choice(NONSENSE))
    if rng.random() < 0.1:
        wild.append(f"{rng.choice(PATHS[4:])}={rng.choice(('${x}', '/no/such', '~nobody/x', 'x' * 3000))}")
    return [*base, *wild, f"exp_root_dir={place}/out"]


def value_for(rng: random.Random, key: str) -> str:
    """A value that is often wrong, or at the end of its range."""
    rule = leaves()[key].rule
    ends = [str(rule[name]) for name in ("low", "above") if name in rule] + list(rule.get("choices", ()))
    ends += [str(rule["high"])] if isinstance(leaves()[key].default, float) and "high" in rule else []
    return rng.choice(ends) if ends and rng.random() < 0.4 else rng.choice(VALUES)


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """A file cut, flipped, or with other contents."""
    if data and rng.random() < 0.5:
        at = rng.randrange(len(data))
        rest = b"" if rng.random() < 0.5 else bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        return data[:at] + rest
    return rng.choice(BYTES)


def damaged_entry(rng: random.Random, node: Any) -> Any:
    """A table or list with one entry somewhere in it replaced or left out."""
    if isinstance(node, dict) and node:
        key = rng.choice(list(node))
        if rng.random() < 0.15:
            return {name: value for name, value in node.items() if name != key}
        inner = isinstance(node[key], dict | list) and node[key] and rng.random() < 0.6
        return node | {key: damaged_entry(rng, node[key]) if inner else rng.choice(ENTRIES)}
    if isinstance(node, list) and node and rng.random() < 0.7:
        at = rng.randrange(len(node))
        return [*node[:at], damaged_entry(rng, node[at]), *node[at + 1 :]]
    return rng.choice(ENTRIES)


def misplaced(rng: random.Random, file: Path, place: Path) -> None:
    """Something else in the place of a file: a folder, a link to a file outside, to itself or to nowhere, a pipe."""
    how = rng.randrange(5)
    if how == 0:
        file.mkdir()
    elif how == 1:
        os.mkfifo(file)
    else:
        file.symlink_to((place / "canary", file, place / "nowhere")[how - 2])


def damaged_checkpoint(rng: random.Random, folder: Path) -> None:
    """One entry of the newest checkpoint replaced, with a manifest that believes it."""
    file = folder / "ckpts" / "last.ckpt"
    state = damaged_entry(rng, torch.load(file, weights_only=True))
    for path in (file, *sorted(folder.glob("ckpts/step-*.ckpt"))[-1:]):
        path.unlink()
        torch.save(state, path)
    known = json.loads((folder / "ckpts/manifest.json").read_text())
    known["files"]["last.ckpt"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "ckpts/manifest.json").write_text(json.dumps(known))


def runs_case(rng: random.Random, place: Path, run: Path) -> list[str]:
    """A copy of a finished run with one file damaged, and a command that goes on with it."""
    folder = place / "out" / "tiny" / f"run{rng.randrange(10**9)}"
    shutil.copytree(run, folder)
    if rng.random() < 0.4:
        damaged_checkpoint(rng, folder)
    else:
        names = ["ckpts/last.ckpt", "ckpts/manifest.json", "configs/parsed.yaml", "run.json", "cmd.txt", "metrics.json"]
        file = folder / rng.choice([*names, "csv_logs/metrics.csv", ".lock", "log.txt"])
        data = file.read_bytes() if file.exists() else b'{"pid": -1, "host": 1, "started": NaN}'
        file.unlink(missing_ok=True)
        how = rng.random()
        if how < 0.25:
            misplaced(rng, file, place)
        elif how < 0.5 and file.suffix == ".json" and data:
            file.write_text(json.dumps(damaged_entry(rng, json.loads(data))))
        else:
            file.write_bytes(damaged_bytes(rng, data))
        if file.name == ".lock" and file.is_file() and not file.is_symlink():
            os.utime(file, (0, 0))
    if rng.random() < 0.15:
        return ["--config", f"{folder}/configs/parsed.yaml", "task=sample", "sample.n=1", f"exp_root_dir={place}/out"]
    return [*rng.choice(LOOKS), f"resume={folder}"]


def priors_case(rng: random.Random, place: Path, prior: Path) -> list[str]:
    """A copy of a prior's folder with one file damaged, and a command that draws a picture with it."""
    folder = place / "out" / "priors" / f"prior{rng.randrange(10**9)}"
    shutil.copytree(prior, folder)
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if rng.random() < 0.1:
        file.unlink()
        misplaced(rng, file, place)
    elif file.suffix == ".json" and rng.random() < 0.75:
        file.write_text(json.dumps(damaged_entry(rng, json.loads(file.read_text()))))
    elif file.suffix == ".safetensors" and rng.random() < 0.6:
        damaged_weights(rng, file)
    else:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))
    line = ["task=sample", "prior=sd", f"prior.path={folder}", "prompt=red ball", "sample.n=1", "sample.steps=1"]
    return [*line, f"prior.cache={folder}/cache", f"exp_root_dir={place}/out"]


def damaged_weights(rng: random.Random, file: Path) -> None:
    """One tensor of another type, shape or value, or left out."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    key = rng.choice(sorted(tensors))
    x = tensors.pop(key)
    if rng.random() < 0.8:
        tensors[key] = rng.choice((x.long(), x.bool(), x.flatten()[:1], x * torch.nan, x[None])).contiguous()
    save_file(tensors, file, {"format": "pt"})


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
