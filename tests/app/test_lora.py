"""prior.lora and prior.delta from the command line: another picture, or exit code 2 and one line.

Seen to fail: neither given to the adapter, delta_from without delta read in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from threestudio_rf.core.random import generator
from threestudio_rf.priors.tiny import weights_folder

SD = weights_folder() / "tiny-sd"
LINE = ["task=sample", "prior=sd", f"prior.path={SD}", "prompt=a red ball", "steps=2", "n=1"]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA over the first convolution of the network."""
    draws = generator(0, 0, "lora")
    with safe_open(next((SD / "unet").glob("*.safetensors")), "pt") as handle:
        shape = handle.get_slice("conv_in.weight").get_shape()
    a, b = torch.randn(2, *shape[1:], generator=draws), torch.randn(shape[0], 2, 1, 1, generator=draws)
    file = tmp_path / "style.safetensors"
    save_file({"unet.conv_in.lora_A.weight": a, "unet.conv_in.lora_B.weight": b}, file)
    return file


def test_a_lora_and_a_difference_change_the_picture(launcher: Any, lora: Path, tmp_path: Path) -> None:
    pictures = []
    other = f"prior.delta={SD}-v"
    same = ([], [f"prior.lora={lora}:0"], [other, "prior.delta_scale=0"], [other, f"prior.delta_from={SD}-v"])
    for more in (*same, [f"prior.lora={lora}:0.3,{lora}:0.2"], [other]):
        code, folder, _, err = launcher(*LINE, *more, f"exp_root_dir={tmp_path}", f"prior.cache={tmp_path}/texts")
        assert code == 0, err
        pictures.append(np.asarray(Image.open(next((folder / "save").glob("*.png")))).astype(int))
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1 : len(same)])
    assert all(np.abs(picture - pictures[0]).max() > 8 for picture in pictures[len(same) :])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["prior.lora=none.safetensors"], "prior.lora=none.safetensors: no such file"),
        ([f"prior.lora={SD}"], "is a whole prior"),
        (["prior.lora=a,,b"], "expected <file or owner/name>[:scale]"),
        ([f"prior.delta={SD.parent}/tiny-sd3"], "holds no weights"),
        (["prior.delta_scale=2"], "prior.delta= does not read it"),
        (["prior=tiny_sd", "prior.path=", "prior.lora=x"], "prior.name=tiny_sd does not read it"),
    ],
)
def test_what_does_not_fit_ends_with_2_and_one_line(more: list[str], words: str, launcher: Any, tmp_path: Path) -> None:
    kept = [item for item in LINE if item.partition("=")[0] not in {other.partition("=")[0] for other in more}]
    code, _, _, err = launcher(*kept, *(item for item in more if item != "prior.path="), f"exp_root_dir={tmp_path}")
    last = [line for line in err.splitlines() if words in line]
    assert code == 2 and last and "Traceback" not in err and "Error" not in last[0], err
