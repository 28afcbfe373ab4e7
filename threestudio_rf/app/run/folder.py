"""The run folder: its name, its lock, and what is written into it before the work begins.

`<exp_root_dir>/<name>/<slug>@<YYYYmmdd-HHMMSS>/`, as threestudio names it and T3Bench looks for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from threestudio_rf.app.errors import UserError, user_path
from threestudio_rf.core.files import own_file, read_text, write_text

ALLOWED = "_,'’().+-"
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
LONGEST = 120
LOCK = ".lock"
RECORD = ("cmd.txt", "run.json", "log.txt", "configs/parsed.yaml", "configs/raw.yaml", LOCK)
"""What a command writes before its work begins."""
PACKAGES: tuple[str, ...] = (
    "torch",
    "diffusers",
    "transformers",
    "hydra-core",
    "omegaconf",
    "numpy",
    "nerfacc",
    "trimesh",
)
PACKAGES += ("scikit-image", "imageio-ffmpeg", "xatlas", "fast-simplification")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|KEY", re.IGNORECASE)
SHOWN = re.compile(r"(HF_|HUGGING|CUDA_|OMP_|MKL_|NCCL_|SLURM_JOB|TRANSFORMERS_|DIFFUSERS_|WANDB_)\w*|RANK|WORLD_SIZE")


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds; nothing where it is missing, broken or something else."""
    try:
        found = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def slug(text: str) -> str:
    """A prompt as a file name: NFKC, space to `_`, letters, digits and `_ , ' ’ ( ) . + -` kept, others `-`, at most
    120 bytes; six digits of its sha256 are added when anything but spaces was changed."""
    wanted = text.replace(" ", "_")
    normal = unicodedata.normalize("NFKC", text).replace(" ", "_")
    kept = "".join(c if (c.isalnum() and _has_name(c)) or c in ALLOWED else "-" for c in normal).lstrip(".").rstrip(".")
    if RESERVED.fullmatch(kept.split(".", 1)[0]):
        kept = f"-{kept}"
    if kept == wanted and kept and len(kept.encode()) <= LONGEST:
        return kept
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    short = kept.encode("utf-8", "ignore")[: LONGEST - 7].decode("utf-8", "ignore")
    return f"{short}-{digest}" if short else digest


def _has_name(letter: str) -> bool:
    """Whether file names of this system can have that letter (not in locale C without UTF-8)."""
    try:
        os.fsencode(letter)
    except UnicodeEncodeError:
        return False
    return True


def _within(root: Path, name: str) -> Path:
    path = root / slug(name)
    if root.resolve() not in path.resolve().parents:
        raise UserError(f"{path} is not below {root}")
    return path


class Lock:
    """One process per run folder: a file with process, its start and host. One of a dead process is removed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK

    def take(self) -> None:
        """Raises UserError while another process holds it."""
        pid = os.getpid()
        owner = {"pid": pid, "started": _started(pid), "host": socket.gethostname()}
        for _ in range(3):
            try:
                with self.path.open("x", encoding="utf-8") as handle:
                    json.dump(owner, handle)
                return
            except FileExistsError:
                self._remove_stale()
        raise UserError(f"{self.path} cannot be taken; remove it when no run uses this folder")

    def _remove_stale(self) -> None:
        owner = read_object(self.path)
        pid, host, started = owner.get("pid"), owner.get("host"), owner.get("started")
        if not isinstance(pid, int) or not isinstance(host, str) or not isinstance(started, int | float):
            self._remove_broken()
        elif host == socket.gethostname() and not (abs(started) < 1e18 and abs(_started(pid) - started) <= 1):
            self.path.unlink(missing_ok=True)
        else:
            raise UserError(
                f"{self.path.parent} is in use by process {pid} on {host}; wait for it or choose another folder "
                f"(if that process is gone, remove {self.path})"
            )

    def _remove_broken(self) -> None:
        try:
            if time.time() - self.path.stat().st_mtime < 5:
                raise UserError(f"another run is starting in {self.path.parent}")
            self.path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.path} is no lock of a run ({error.strerror or error}): remove it") from None

    def release(self) -> None:
        """Give the folder back."""
        self.path.unlink(missing_ok=True)


def _started(pid: int) -> float:
    """When a process of this machine started, in seconds; -1 when there is none."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):  # also for numbers that no process can have
        return -1.0


def probe(folder: Path) -> None:
    """Make `folder` and try to write in it. UserError with the system's reason when that is impossible."""
    trial = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"probe")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; choose another exp_root_dir=") from None
    finally:
        _quiet_unlink(trial)


def _quiet_unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def create(root: str, name: str, text: str, *, suffix: str = "", now: float | None = None) -> Path:
    """A new, empty, writable run folder for `text`, locked by nobody yet."""
    base = user_path(root, "exp_root_dir")
    probe(base)
    parent = _within(base, name)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + suffix
    for number in range(1000):
        folder = parent / (f"{slug(text)}@{stamp}" + (f"-{number}" if number else ""))
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror or error}") from None
        return folder
    raise UserError(f"{parent} already holds a thousand runs of this second")


def missing(folder: Path) -> list[Path]:
    """The folders that would be made to make `folder`, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def discard(folder: Path, made: Sequence[Path]) -> bool:
    """Take a refused command's folder away, and those of `made` that are empty then. False where it holds more than
    the record of the command, so that nothing is lost."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    if any(path.relative_to(folder).as_posix() not in RECORD for path in files):
        return False
    for path in files:
        path.unlink(missing_ok=True)
    for path in (folder / "configs", folder / "save", folder, *made):
        try:
            path.rmdir()
        except OSError:
            continue
    return not folder.exists()


def finished(root: str, name: str, text: str, settings: str) -> Path | None:
    """A finished run of this name and text whose record says these very settings."""
    for run in sorted(_within(user_path(root, "exp_root_dir"), name).glob("*@*")):
        try:
            stored = read_text(run / "configs" / "parsed.yaml", "replace")
        except OSError:
            continue
        if stored == settings and read_object(run / "run.json").get("status") == "finished":
            return run
    return None


def latest(root: str, name: str, text: str) -> Path | None:
    """The last run folder of this name and prompt that holds a checkpoint."""
    parent = _within(user_path(root, "exp_root_dir"), name)
    runs = [path for path in parent.glob("*@*") if path.name.rsplit("@", 1)[0] == slug(text)]
    runs = [path for path in runs if any((path / "ckpts").glob("*.ckpt"))]
    return max(runs, key=lambda path: path.name, default=None)


def run_of(path: Path) -> Path | None:
    """The run folder that a resumed path belongs to: the folder itself, or the one around `ckpts/`."""
    folder = path if path.is_dir() else path.parent
    if folder.name == "ckpts":
        return folder.parent
    return folder if (folder / "ckpts").is_dir() else None


def about(prior: str) -> dict[str, Any]:
    """Entries of run.json about the program and the machine; nothing secret."""
    variables = {k: v for k, v in sorted(os.environ.items()) if SHOWN.fullmatch(k)}
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit(),
        "prior": prior,
        "environment": {k: "***" if SECRET.search(k) else v for k, v in variables.items()},
    }


@cache
def versions() -> dict[str, str | None]:
    """The installed versions of the program and of what it stands on, None for what is missing."""
    found: dict[str, str | None] = {}
    for name in ("threestudio_rf", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


@cache
def commit() -> str | None:
    """The commit of this checkout when the process first asks, with `+` when files differ from it; None outside of
    one."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def write_command(folder: Path, argv: Sequence[str]) -> None:
    """One more line of cmd.txt."""
    with own_file(folder / "cmd.txt").open("a", encoding="utf-8", errors="backslashreplace") as handle:
        handle.write(f"{shlex.join([Path(sys.executable).name, 'launch.py', *argv])}\n")


def write_start(folder: Path, *, parsed: str, raw: str, argv: Sequence[str], prior: str) -> None:
    """cmd.txt, configs/ and run.json of a run that begins or goes on; an earlier command stays in cmd.txt."""
    (folder / "configs").mkdir(exist_ok=True)
    write_command(folder, argv)
    write_text(folder / "configs" / "parsed.yaml", parsed)
    write_text(folder / "configs" / "raw.yaml", raw)
    write_status(folder, about(prior) | {"status": "running"})


def write_status(folder: Path, values: dict[str, Any]) -> None:
    """Add `values` to run.json."""
    file = folder / "run.json"
    write_text(file, json.dumps(read_object(file) | values, indent=2, ensure_ascii=False) + "\n")
