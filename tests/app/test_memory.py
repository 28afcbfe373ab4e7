"""What a step of training takes, by arithmetic, before anything is loaded.

Seen to fail: fp8 left out; the encoder's pixels not squared; the file's bytes taken for numbers.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import save_file

from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks.doctor import duration, fits, needed, parameters_of_network


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            ["experiment=rfds_sd3"],
            {"network": 3.78, "VAE": 0.16, "encoder": 1.5},
        ),  # as docs/benchmarks.md measured them
        (["experiment=rfds_sd3", "prior.storage=fp8", "prior.vae=x"], {"network": 1.89}),
        (["experiment=dreamfusion_sd", "prior.dtype=fp32"], {"network": 3.2, "VAE": 0.31, "encoder": 3.0}),
        ([], {}),
    ],
)
def test_the_doctor_estimates_the_memory_of_a_step(line: list[str], parts: dict[str, float]) -> None:
    config = typed(compose(line))
    found = needed(config, torch.device("cuda"))
    assert {name: found.get(name, 0) for name in parts} == pytest.approx(parts, rel=0.03)
    assert found.keys() == {"CUDA", "renderer", "scene", *parts}
    config.scene.renderer.ray_chunk = 1000
    assert needed(config, torch.device("cuda"))["renderer"] < found["renderer"] / 4


def test_a_step_that_cannot_fit_says_so_before_it_begins(monkeypatch) -> None:
    config = typed(compose(["experiment=rfds_sd3", "prior.dtype=bf16"]))
    for free, words in ((100, "100.0 GiB are free"), (8, "smaller chunks"), (3, "DOES NOT FIT; preset=low_vram")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free * 2**30))
        line, whole = fits(config, torch.device("cpu"))
        assert words in line and whole == (free == 100)


def test_a_large_prior_on_a_cpu_says_days_and_gigabytes_before_it_loads(launcher, tmp_path: Path) -> None:
    config, cpu = typed(compose(["experiment=rfds_sd3"])), torch.device("cpu")
    days = (5000 / 4 + 10_000) * 32.5 / 86_400  # a quarter of the pixels first; seconds as docs/benchmarks.md has them
    assert f"15000 steps with sd3 on a CPU take about {days:.1f} days on two cores" in duration(config, cpu)
    flat = typed(compose(["experiment=2d_rfds", "trainer.steps=100"]))
    assert "100 steps with instaflow on a CPU take about 2.0 hours" in duration(flat, cpu)
    assert duration(config, torch.device("cuda")) == duration(typed(compose([])), cpu) == ""
    line = ["experiment=rfds_sd3", "prompt=a hat", "prior.path=no/where", "device=cpu", "prior.offline=true"]
    code, _, _, err = launcher(*line, f"exp_root_dir={tmp_path}")
    first, last = err.strip().splitlines()[0], err.strip().splitlines()[-1]
    assert code == 2 and "days" in first and "GiB of memory" in first and last.startswith("error: "), err


def test_the_network_of_a_folder_is_counted_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    weights = {"w": torch.zeros(1000, 100, dtype=torch.float16)}
    save_file(weights, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    config = typed(compose(["experiment=rfds_sd3", f"prior.path='{tmp_path}'"]))
    assert parameters_of_network(config) == pytest.approx(100_000, rel=0.01)
