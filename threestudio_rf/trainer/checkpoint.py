"""Checkpoints that are whole or absent, checked by sha256, and never executed when they are read.

`<folder>/step-0005000.ckpt` is written under a temporary name, flushed to the disk and renamed; `last.ckpt` is the
newest of them; `manifest.json` holds size, step and sha256 of each, because a flipped bit passes `torch.load` unseen.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from threestudio_rf.core.files import read_bytes, read_text, sync, temporary, write_files, write_text

FORMAT = "threestudio_rf checkpoint 1"
LAST, MANIFEST = "last.ckpt", "manifest.json"
KEYS = ("format", "step", "scene", "optimiser", "config", "prior", "figures", "rng")
STEP_FILE = re.compile(r"step-(\d+)\.ckpt")


class CheckpointError(ValueError):
    """No usable checkpoint; the text is meant for the user."""


class Loaded(NamedTuple):
    """The state of a checkpoint, the file it came from, and what was wrong with the ones that were passed over."""

    state: dict[str, Any]
    path: Path
    passed_over: list[str]


def random_states() -> dict[str, Any]:
    """States of Python's and torch's global generators; our own draws are stateless and need none."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to what `random_states` returned; CUDA's only for as many devices as there are."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)


def pack(
    *,
    step: int,
    scene: dict[str, Tensor],
    optimiser: dict[str, Any],
    config: str,
    prior: dict[str, str],
    figures: dict[str, float],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds: tensors, numbers and text only. `step` is the number of finished steps, `figures` what
    the run has spent so far, `extra` the states of whatever else learns, by name."""
    return {
        "format": FORMAT,
        "step": step,
        "scene": scene,
        "optimiser": optimiser,
        "config": config,
        "prior": prior,
        "figures": figures,
        "rng": random_states(),
        "extra": extra or {},
    }


def save(folder: Path, state: dict[str, Any], *, keep: int = 2) -> Path:
    """Write `state` (of `pack`) as the newest checkpoint of `folder` and keep the `keep` newest.

    Raises OSError when the disk is full or the folder not writable; then every older checkpoint is still there.
    """
    if keep < 1:
        raise ValueError(f"keep: got {keep}, expected at least 1")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    path = folder / f"step-{state['step']:07d}.ckpt"
    write_files({path: data})
    entry = {"step": state["step"], "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = read_manifest(folder) | {path.name: entry, LAST: entry}
    kept = {path.name} | set(sorted(_step_files(folder) - {path.name}, reverse=True)[: keep - 1])
    write_manifest(folder, files)
    _make_last(path)
    for name in _step_files(folder) - kept:
        (folder / name).unlink(missing_ok=True)
    write_manifest(folder, {name: entry for name, entry in files.items() if name in kept | {LAST}})
    return path


def _step_files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("step-*.ckpt") if STEP_FILE.fullmatch(path.name)}


def _make_last(path: Path) -> None:
    """`last.ckpt` becomes another name of `path`; a copy where the file system has no links."""
    last = path.with_name(LAST)
    try:
        os.link(path, temporary(last))
    except OSError:
        write_files({last: path.read_bytes()})
    else:
        os.replace(temporary(last), last)
        sync(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """Temporary files of processes that were killed. The run's lock says that nobody else writes here."""
    for path in folder.glob("*.tmp.*"):
        path.unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries by file name; empty when there is none or it is broken (it is written anew by the next save)."""
    try:
        files = json.loads(read_text(folder / MANIFEST))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {str(name): entry for name, entry in files.items() if _is_entry(entry)} if isinstance(files, dict) else {}


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and len(entry["sha256"]) == 64


def write_manifest(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the entries atomically."""
    write_text(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def _read(path: Path, known: set[str]) -> dict[str, Any]:
    """One file, checked. CheckpointError says what is wrong with it in one line."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    if known and hashlib.sha256(data).hexdigest() not in known:
        raise CheckpointError(f"{path}: its sha256 is not the one in {MANIFEST} ({len(data)} bytes); it is damaged")
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for a broken archive, none of them documented
        raise CheckpointError(
            f"{path}: not a checkpoint of this project, or damaged; nothing in it was executed"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or any(key not in state for key in KEYS):
        raise CheckpointError(f"{path}: not a checkpoint of this project (expected format {FORMAT!r})")
    for key, is_right, expected in ENTRIES:
        if not is_right(state[key]):
            raise CheckpointError(f"{path}: its entry {key} is wrong, expected {expected}")
    return state


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(x, Tensor) and not x.isnan().any() for key, x in value.items()
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(x, int | float) and abs(x) < float("inf") for key, x in value.items()
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for item in value.items() for text in item)


def _is_optimiser(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("state"), dict) and isinstance(value.get("param_groups"), list)
    )


def _are_random_states(value: Any) -> bool:
    try:
        version, internal, gauss = value["python"]
        random.Random().setstate((version, tuple(internal), gauss))
        torch.Generator().set_state(value["torch"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        return False
    return isinstance(value.get("cuda"), list)


ENTRIES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("step", _is_step, "a whole number of at least 0"),
    ("scene", _are_tensors, "tensors of numbers by name"),
    ("optimiser", _is_optimiser, "the state of an optimiser"),
    ("config", lambda value: isinstance(value, str), "a text"),
    ("prior", _are_texts, "texts by name"),
    ("figures", _are_numbers, "finite numbers by name"),
    ("rng", _are_random_states, "the states of the random generators"),
)
"""What a checkpoint holds beside its format: key, whether a value is right, and what is expected in words."""


@contextmanager
def fitting(path: Path, what: str) -> Iterator[None]:
    """CheckpointError where the stored `what` ("scene") of a checkpoint does not fit what it is put into."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[1:] or lines)[:300]
        raise CheckpointError(
            f"{path}: its {what} does not fit these settings: {reason or 'an entry is missing'}"
        ) from None


def candidates(path: Path) -> list[Path]:
    """The files to try, in order: `path` (or a folder's last.ckpt), then the step files, newest first."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and (path / "ckpts").is_dir():
        folder = path / "ckpts"
    first = folder / LAST if path.is_dir() else path
    steps = [folder / name for name in sorted(_step_files(folder), reverse=True)]
    asked = STEP_FILE.fullmatch(first.name)
    older = [step for step in steps if asked is None or step.name < first.name]
    return [first, *older] if asked is not None or first.name == LAST else [first]


def load(path: Path) -> Loaded:
    """The checkpoint at `path`, a file, a folder of checkpoints or a run folder; a damaged one falls back to the one
    before. Only tensors, numbers and text are read (`weights_only`). Raises CheckpointError when none is usable."""
    problems: list[str] = []
    for file in candidates(path):
        known = {str(entry["sha256"]) for entry in read_manifest(file.parent).values()}
        try:
            return Loaded(_read(file, known), file, problems)
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError("; ".join(problems))
