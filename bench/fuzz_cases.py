"""The cases of `bench/fuzz.py`: command lines with wrong values, runs and prior folders with one damaged file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.errors import PATHS
from threestudio_rf.app.settings.config import leaves

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
