"""GB that every prior of the hub takes on a GPU, by arithmetic: its texts, then one guidance gradient, by preset.

    python bench/memory.py [--size 512]

Weights in bfloat16, and what the VAE's encoder keeps of one picture of `--size` pixels for its gradient
(`app/tasks/doctor.py`, which `task=doctor` asks too). Texts are embedded first, alone. Not counted: the scene and its
renderer, what a network needs for a moment, CUDA itself (0.5 GB or so). GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks.doctor import GIB, embedding, of_prior
from threestudio_rf.priors.facts import FACTS

LOW = "preset=low_vram"
PRESETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "low_vram": (LOW,),
    "low_vram, fp8": (LOW, "prior.storage=fp8"),
    "low_vram, offload": (LOW, "prior.offload=true"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    gpu = torch.device("cuda")
    print(f"| prior | texts | {' | '.join(PRESETS)} |\n|---|---|{'---|' * len(PRESETS)}")
    for name in (name for name, facts in FACTS.items() if facts.source == "hub"):
        row = []
        for preset in PRESETS.values():
            given = [f"prior={name}", "prior.path=owner/name", f"prior.image_size={options.size}", "camera.views=[1]"]
            config = typed(compose([*given, *preset]))
            if not row:
                row.append(embedding(config, gpu))
            row.append(sum(of_prior(config, gpu).values()))
        print(f"| `{name}` | {' | '.join(f'{value * GIB / 1e9:.1f}' for value in row)} |")


if __name__ == "__main__":
    main()
