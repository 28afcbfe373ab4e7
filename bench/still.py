"""What must not change when code moves: results of short runs at a fixed seed, bit for bit, and every refusal's words.

    python bench/still.py record FILE          # before
    python bench/still.py compare FILE         # after; prints what differs, exit code 1 if anything does

Five runs of 20 steps (their metrics.csv without seconds), pictures of sample, edit, invert and of one cell of a grid,
and the texts of `tests/app/test_check.py`'s refusals. The same machine and number of threads on both sides.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORT = ["trainer.steps=20", "trainer.log_every=1", "trainer.validate_every=0", "checkpoint.every=0"]
SHORT += ["evaluate.auto=false"]
LIFT = ["prompt=a red mushroom", "prior=tiny_sd3", *SHORT]
LIFT += ["trainer.progress=0", "camera.test_views=1", "camera.eval_size=32", "export.resolution=24"]
PICTURES = ["experiment=tiny_image", "prompt=a yellow chair", *SHORT]
RUNS: dict[str, list[str]] = {
    "nerf rfds_rev": [*LIFT, "loss=tiny_rfds_rev"],
    "image vsd": [*PICTURES, "prior=tiny_sd", "loss=vsd"],
    "accumulate": [*PICTURES, "prior=tiny_sd", "optim.accumulate=3"],
    "draws": [*LIFT, "loss=tiny_ours"],
    "sdi": [*PICTURES, "prior=tiny_sd3", "loss=sdi"],
    "sample": ["task=sample", "prior=tiny_sd", "prompt=a red ball", "n=2", "steps=6"],
    "edit": ["task=edit", "prior=tiny_sd", "source=a red ball", "prompt=a blue ball"],
    "invert": ["task=invert", "prior=tiny_sd3", "prompt=a red ball"],
    "grid": ["task=grid", "grid.methods=[sds]", "grid.priors=[tiny_sd]", "grid.prompts=[a red ball]", "grid.jobs=0"],
}
QUOTED = ",".join(f"'{item}'" for item in ("experiment=tiny_image", *SHORT))
RUNS["grid"] += ["grid.name=still", f"grid.set=[{QUOTED}]"]


def launch(line: list[str], root: Path) -> None:
    """Run one command line below `root`; RuntimeError with its words when it fails."""
    command = [sys.executable, str(ROOT / "launch.py"), *line, f"exp_root_dir={root}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr[-400:]}")


def digest(root: Path) -> dict[str, str]:
    """Digests of the metrics and pictures below a folder, by their place in the run folder."""
    found = {}
    for file in sorted(root.rglob("*")):
        if file.name == "metrics.csv":
            rows = list(csv.DictReader(file.open()))
            content = repr([{key: value for key, value in row.items() if key != "seconds"} for row in rows]).encode()
        elif file.suffix == ".png" and file.name not in ("curves.png", "grid.png"):
            content = file.read_bytes()
        else:
            continue
        found[f"{file.parent.name.partition(chr(64))[0]}/{file.name}"] = hashlib.sha256(content).hexdigest()[:16]
    return found


def refusals() -> dict[str, str]:
    """The words of every refusal that the tests of `check` provoke."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "app")]
    import test_check

    texts = {}
    for name, value in vars(test_check).items():
        for mark in getattr(value, "pytestmark", []):
            if mark.name != "parametrize" or mark.args[0] not in (("changes", "message"), "changes, message"):
                continue
            for changes, _ in mark.args[1]:
                try:
                    test_check.check(test_check.config_with(changes))
                except test_check.UserError as error:
                    texts[f"{name} {changes}"] = str(error)
    return texts


def record() -> dict[str, dict[str, str]]:
    """Everything, by the name of the run."""
    found, picture = {"refusals": refusals()}, Path()
    with tempfile.TemporaryDirectory() as folder:
        for name, line in RUNS.items():
            root = Path(folder) / name.replace(" ", "_")
            more = [f"image={picture}"] if name in ("edit", "invert") else []
            launch([*line, *more], root)
            found[name] = digest(root)
            if name == "sample":
                picture = next(root.rglob("00000.png"))
            print(f"{name}: {len(found[name])} files", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    now = record()
    if options.what == "record":
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(json.dumps(now, indent=1) + "\n")
        return
    before = json.loads(options.file.read_text())
    changed = [
        f"{run}: {key}: {old} -> {now.get(run, {}).get(key)}"
        for run, rows in before.items()
        for key, old in rows.items()
        if now.get(run, {}).get(key) != old
    ]
    print("\n".join(changed) or "nothing differs")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
