"""Hash grid, forward and backward, against nerfstudio's torch `HashEncoding` in the same process.

    pip install --no-deps nerfstudio jaxtyping      # a dependency of this benchmark only
    python bench/hashgrid.py [--points 65536] [--repeats 7] [--threads 2]

Both get the same table, points and incoming gradient. "hashed" is our grid with every level hashed, as nerfstudio does
it: its features must equal nerfstudio's to 1e-5, its table gradients to 1e-5 of the largest one (both are float32 sums
of up to thousands of terms). "default" is what the product uses: levels that fit into the table are indexed densely.
Repetitions alternate; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from threestudio_rf.scenes.hashgrid import HashGrid

CASES = {"16 levels of 2^19": (16, 19, 16, 4096.5), "8 levels of 2^14": (8, 14, 8, 136.75)}


def nerfstudio_encoding() -> Any:
    """The class, from an installed nerfstudio; what nerfstudio imports but a hash grid does not need is stubbed."""
    for _ in range(100):
        try:
            from nerfstudio.field_components.encodings import HashEncoding
        except ModuleNotFoundError as error:
            name = error.name or ""
            if name.partition(".")[0] == "nerfstudio":
                raise SystemExit("this benchmark compares with nerfstudio: pip install --no-deps nerfstudio") from error
            sys.modules[name] = MagicMock()
        else:
            return HashEncoding
    raise SystemExit("nerfstudio does not import")


def step(encoding: nn.Module, table: Tensor, points: Tensor, grad: Tensor) -> tuple[float, Tensor]:
    table.grad = None
    begin = time.perf_counter()
    out = encoding(points)
    out.backward(grad)
    return time.perf_counter() - begin, out.detach()


def compare(name: str, points: Tensor, repeats: int) -> bool:
    levels, log2_table, base, finest = CASES[name]
    growth = (finest / base) ** (1 / (levels - 1))
    theirs = nerfstudio_encoding()(levels, base, finest, log2_table, hash_init_scale=0.1, implementation="torch")
    sizes = {"levels": levels, "log2_table": log2_table, "base": base, "growth": growth}
    ours = {"hashed": HashGrid(dense=False, **sizes), "default": HashGrid(**sizes)}
    if theirs.scalings.long().tolist() != [level.resolution for level in ours["hashed"].levels]:
        raise SystemExit(f"resolutions differ: {theirs.scalings.tolist()}")
    with torch.no_grad():
        ours["hashed"].table.copy_(theirs.hash_table.t())
    grad = torch.randn(len(points), 2 * levels, generator=torch.Generator().manual_seed(1))
    runs: dict[str, tuple[nn.Module, Tensor]] = {"nerfstudio": (theirs, theirs.hash_table)}
    runs |= {key: (grid, grid.table) for key, grid in ours.items()}
    outputs = {key: step(encoding, table, points, grad)[1] for key, (encoding, table) in runs.items()}
    value_error = float((outputs["hashed"] - outputs["nerfstudio"]).abs().max())
    theirs_grad, ours_grad = theirs.hash_table.grad, ours["hashed"].table.grad
    grad_error = float((ours_grad.t() - theirs_grad).abs().max() / theirs_grad.abs().max())  # type: ignore[union-attr]
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, (encoding, table) in runs.items():
            times[key].append(step(encoding, table, points, grad)[0])
    medians = {key: statistics.median(values) for key, values in times.items()}
    for key, median in medians.items():
        print(f"| {name} | {key} | {1e3 * median:.0f} | {medians['nerfstudio'] / median:.1f} |")
    good = max(value_error, grad_error) < 1e-5
    print(f"| {name} | largest difference | features {value_error:.1e} | gradients {grad_error:.1e} |")
    return good and medians["nerfstudio"] >= 5 * max(medians["hashed"], medians["default"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.points} points, {arguments.threads} threads, {arguments.repeats} repeats")
    print("| size | grid | ms, forward + backward | times as fast |\n|---|---|---|---|")
    points = torch.rand(arguments.points, 3, generator=torch.Generator().manual_seed(0))
    reached = [compare(name, points, arguments.repeats) for name in CASES]
    print("reached: 5 times as fast, equal to 1e-5" if all(reached) else "NOT reached: 5 times as fast, equal to 1e-5")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    raise SystemExit(main())
