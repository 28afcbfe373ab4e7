"""kill -9 of one of two processes of a run at random moments: how long the others take to end, and what is left.

    python bench/kills.py [--kills 10] [--seed 0] [--start env torchrun]

A short run of `experiment=tiny` by two gloo processes; moments are drawn evenly over the life of the victim in a run
that nobody disturbs, one in each tenth. Told for each: seconds until all processes have ended, their exit codes, the
step of the last checkpoint, and whether the run that goes on from it ends with the numbers of the undisturbed one, to
the last bit. `env` starts two processes by hand (torch's env://), `torchrun` by torchrun.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch

from threestudio_rf.trainer.checkpoint import CheckpointError, load

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ["prompt=a red mushroom", "trainer.steps=18", "checkpoint.every=2", "checkpoint.keep=2"]
SETTINGS += ["trainer.validate_every=6", "trainer.progress=0", "camera.test_views=2", "camera.eval_size=32"]
SETTINGS += ["camera.sizes=[32]", "export.resolution=16", "camera.validation_views=1"]
LIMIT = 150.0


class Run:
    """Two processes on `line`, started by `start`."""

    def __init__(self, start: str, line: list[str], log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.begun, output = time.monotonic(), log.open("w")
        launch = [str(ROOT / "launch.py"), *line]
        if start == "torchrun":
            torchrun = [sys.executable, "-m", "torch.distributed.run", f"--master-port={port}", "--nproc_per_node=2"]
            self.first = [subprocess.Popen([*torchrun, *launch], env=own, stdout=output, stderr=output)]
        else:
            own |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            self.first = [
                subprocess.Popen(
                    [sys.executable, *launch],
                    env=own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=output,
                    stderr=output,
                )
                for rank in range(2)
            ]
        self.by_hand = start == "env"

    def process(self, rank: int) -> psutil.Process:
        """The process of a rank, as soon as it is there."""
        while not self.by_hand:
            for child in psutil.Process(self.first[0].pid).children(recursive=True):
                try:
                    if child.environ().get("RANK") == str(rank):
                        return child
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            time.sleep(0.01)
        return psutil.Process(self.first[rank].pid)

    def end(self, limit: float) -> tuple[float, list[int | None]]:
        """Seconds until all have ended, at most `limit`, and their exit codes; None for one that had to be killed."""
        since, codes = time.monotonic(), list[int | None]()
        for process in self.first:
            try:
                codes.append(process.wait(max(limit - (time.monotonic() - since), 0.01)))
            except subprocess.TimeoutExpired:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
                codes.append(None)
        return time.monotonic() - since, codes


def lives(start: str, folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Seconds that each rank lives in an undisturbed run, and the scene it ends with."""
    run = Run(start, [*SETTINGS, f"exp_root_dir={folder}"], folder / "log.txt")
    left = {rank: run.process(rank) for rank in range(2)}
    found = [0.0, 0.0]
    while left:
        for rank, process in list(left.items()):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                found[rank] = time.monotonic() - run.begun
                del left[rank]
        time.sleep(0.05)
    if run.end(LIMIT)[1] != [0] * len(run.first):
        raise SystemExit((folder / "log.txt").read_text())
    return found, ended(folder)


def run_of(folder: Path) -> Path | None:
    """The only run below `folder`."""
    found = list((folder / "tiny").glob("*@*"))
    return found[0] if found else None


def ended(folder: Path) -> dict[str, torch.Tensor]:
    """The scene of the last checkpoint below `folder`."""
    run = run_of(folder)
    if run is None:
        raise CheckpointError(f"no run below {folder}")
    scene: dict[str, torch.Tensor] = load(run).state["scene"]
    return scene


def stored(folder: Path) -> tuple[str, bool]:
    """The step of the last checkpoint, and whether all that are listed are whole."""
    run = run_of(folder)
    if run is None or not any((run / "ckpts").glob("*.ckpt")):
        return "none", True
    found = load(run)
    return str(found.state["step"]), not found.passed_over


def killed(start: str, rank: int, moment: float, folder: Path, whole: dict[str, torch.Tensor]) -> list[str]:
    """One row of the table; none where the victim had ended before."""
    run = Run(start, [*SETTINGS, f"exp_root_dir={folder}"], folder / "log.txt")
    victim = run.process(rank)
    time.sleep(max(moment - (time.monotonic() - run.begun), 0))
    if not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE:
        run.end(LIMIT)
        return []
    victim.kill()
    seconds, codes = run.end(LIMIT)
    step, good = stored(folder)
    line = [*SETTINGS, f"exp_root_dir={folder}"] if step == "none" else [f"resume={run_of(folder)}"]
    if step == "none":
        shutil.rmtree(folder / "tiny", ignore_errors=True)
    again = Run(start, line, folder / "again.txt").end(2 * LIMIT)[1]
    scene = ended(folder)
    same = scene.keys() == whole.keys() and all(torch.equal(scene[key], whole[key]) for key in whole)
    told = [start, str(rank), f"{moment:.1f}", f"{seconds:.1f}", ", ".join(map(str, codes)), step]
    return [*told, "yes" if good else "NO", "yes" if same and not any(again) else "NO"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", nargs="+", default=["env", "torchrun"], choices=["env", "torchrun"])
    options = parser.parse_args()
    print("| start | victim | killed after, s | all ended after, s | exit codes | checkpoint | whole | resumed exact |")
    print("|---|---|---|---|---|---|---|---|")
    for start in options.start:
        with tempfile.TemporaryDirectory() as root:
            (Path(root) / "whole").mkdir()
            life, whole = lives(start, Path(root) / "whole")
            draws = random.Random(options.seed)
            for number in range(options.kills):
                moment = (number + draws.random()) / options.kills
                rank, row = draws.randrange(2), list[str]()
                while not row:  # this time it lived shorter: other work beside it
                    folder = Path(tempfile.mkdtemp(dir=root))
                    row = killed(start, rank, moment * life[rank], folder, whole)
                    shutil.rmtree(folder)
                    moment *= 0.8
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
