"""What a step of training takes, by arithmetic, before anything is loaded.

Seen to fail: fp8 left out; the encoder's pixels not squared; the file's bytes taken for numbers;
normals for some of what asks for them only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import save_file

from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks.doctor import duration, embedding, fits, needed, of_prior, parameters_of_network
from threestudio_rf.priors.facts import FACTS


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
    config.scene.renderer.ray_chunk = 500
    few = needed(config, torch.device("cuda"))["renderer"]
    assert few < found["renderer"] / 4
    config.loss.lambda_orient = config.loss.lambda_convex = 0.0
    config.scene.shading.start = None
    plain = needed(config, torch.device("cuda"))["renderer"]
    for loss, light in (({"lambda_orient": 0.1}, None), ({"lambda_convex": 0.1}, None), ({}, 0)):  # six more densities
        lit = replace(config.scene, shading=replace(config.scene.shading, start=light))
        asked = replace(config, loss=replace(config.loss, **loss), scene=lit)
        assert needed(asked, torch.device("cuda"))["renderer"] == pytest.approx(7 * plain)


@pytest.mark.parametrize(("experiment", "measured"), [("tiny", 0.79), ("tiny_image", 0.64)])
def test_what_the_doctor_estimates_of_a_run_on_a_cpu_is_near_what_it_took(experiment: str, measured: float) -> None:
    """Peaks of `python launch.py experiment=... prompt="a red mushroom"`, GB, as docs/benchmarks.md has them."""
    found = sum(needed(typed(compose([f"experiment={experiment}"])), torch.device("cpu")).values()) * 2**30 / 1e9
    assert 1 / 1.5 < found / measured < 1.5


def test_a_step_that_cannot_fit_says_so_before_it_begins(monkeypatch) -> None:
    config = typed(compose(["experiment=rfds_sd3", "prior.dtype=bf16", "prior.t5=false"]))
    for free, words in ((100, "100.0 GiB are free"), (8, "smaller chunks"), (3, "DOES NOT FIT; preset=low_vram")):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free * 2**30))
        line, whole = fits(config, torch.device("cpu"))
        assert words in line and whole == (free == 100)
    config.prior.t5 = True
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * 2**30))
    line, whole = fits(config, torch.device("cpu"))
    assert "its texts take 8.9 before; 8.0 GiB are free: it DOES NOT FIT" in line and not whole


def test_a_card_that_is_too_small_is_told_before_anything_loads(monkeypatch) -> None:
    config = typed(compose(["experiment=rfds_sd3", "prior.dtype=bf16"]))
    for free, words in ((80, "80.0 GiB are free"), (9, "smaller chunks"), (4, "DOES NOT FIT; preset=low_vram")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, 80 * 2**30))
        line, whole = fits(config, torch.device("cuda"))
        assert words in line and whole == (free == 80)


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


HUB = [name for name, facts in FACTS.items() if facts.source == "hub"]


def of(name: str, *more: str) -> dict[str, float]:
    """What a prior takes on a GPU for one picture of 512 pixels."""
    given = (f"prior={name}", "prior.path=owner/name", "prior.image_size=512", "camera.views=[1]", "camera.sizes=[512]")
    return of_prior(typed(compose([*given, "camera.milestones=[]", *more])), torch.device("cuda"))


@pytest.mark.parametrize("name", HUB)
def test_every_prior_of_the_hub_has_an_estimate_and_presets_take_from_it_what_they_say(name: str) -> None:
    plain, small, away = of(name), of(name, "preset=low_vram"), of(name, "preset=low_vram", "prior.offload=true")
    assert plain["network"] * 2**30 == pytest.approx(2e9 * FACTS[name].billions.network) and plain["network"] > 1
    assert of(name, "prior.storage=fp8")["network"] == pytest.approx(plain["network"] / 2)
    assert small["network"] == plain["network"] and small.get("VAE") == plain.get("VAE")
    halves = small["network"], sum(small.values()) - small["network"]
    assert sum(away.values()) == pytest.approx(max(halves))
    if name == "prx_pixel":
        assert halves[1] == 0
    elif name != "qwen_image":
        assert 0.5 < small["encoder"] / plain["encoder"] < 0.8


@pytest.mark.parametrize("name", HUB)
def test_a_prior_of_the_hub_says_what_it_takes_before_it_is_looked_for(name: str, launcher, tmp_path: Path) -> None:
    given = [f"prior={name}", "prior.path=owner/name", "prior.offline=true", "device=cpu", f"exp_root_dir={tmp_path}"]
    code, _, _, err = launcher("prompt=a hat", "camera.sizes=[64]", *given)
    assert code == 2 and "GiB of memory" in err and "Traceback" not in err, err


def test_the_doctor_estimates_for_the_command_that_it_is_given(launcher, tmp_path: Path) -> None:
    line = ["task=doctor", "prior=sana", "prior.path=owner/name", "device=cpu", f"exp_root_dir={tmp_path}"]
    code, _, out, err = launcher(*line, "camera.sizes=[64]", "camera.views=[2]", "trainer.steps=10")
    assert code == 0 and "network 2.21" in out and "10 steps with sana on a CPU" in out, err
    code, _, _, err = launcher(*line, "optim.clip=1")
    assert code == 2 and "task=doctor does not read it" in err


def test_estimates_are_those_that_were_measured() -> None:
    """Sana at 512 pixels on a CPU in bf16, docs/benchmarks.md: from loading to the peak, recomputed or not."""
    for more, wanted in (([], 5.12 - 2.27), (["prior.vae_checkpointing=true"], 4.30 - 2.26)):
        assert of("sana", *more)["encoder"] == pytest.approx(wanted, rel=0.02)
    prx = typed(compose(["experiment=rfds_prx", "prior.path=x"]))
    assert embedding(prx, torch.device("cuda")) == pytest.approx(4.87, rel=0.01)


def test_the_network_of_a_folder_is_counted_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    weights = {"w": torch.zeros(1000, 100, dtype=torch.float16)}
    save_file(weights, tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    config = typed(compose(["experiment=rfds_sd3", f"prior.path='{tmp_path}'"]))
    assert parameters_of_network(config) == pytest.approx(100_000, rel=0.01)
    (tmp_path / "text_encoder_2").mkdir()
    save_file(weights, tmp_path / "text_encoder_2/model.safetensors")
    assert embedding(config, torch.device("cuda")) * 2**30 == pytest.approx(200_000, rel=0.01)
