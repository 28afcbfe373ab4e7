"""task=invert: the noise that is stored leads back to the picture, and the figures are those of skimage.

Oracle: skimage's PSNR and SSIM.

Seen to fail: the window's spread, K or the crop of SSIM changed; the noise of another level stored; the reconstruction
compared with the bound instead of the picture; a method without noise let through; calls of the way back left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from threestudio_rf.app import api
from threestudio_rf.app.report.likeness import likeness, mse, psnr, ssim
from threestudio_rf.tiny.world.views import COLOURS

RED = tuple(round(255 * x) for x in COLOURS["red"])
LINE = ["task=invert", "prior=gaussian", "source=a red ball"]


def test_the_stored_noise_leads_back_to_the_picture(launcher: Any, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16), RED).save(tmp_path / "p.png")
    for method, steps in (("fireflow", 40), ("rf_solver", 40), ("euler", 100)):
        line = [*LINE, f"image={tmp_path}/p.png", f"method={method}", f"steps={steps}", f"exp_root_dir={tmp_path}"]
        code, folder, _, _ = launcher(*line)
        assert code == 0 and folder.parent.name == "invert"
        with safe_open(folder / "save/p.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("noise", "latents", "start")}
            about = file.metadata()
        assert about == {"prior": "gaussian", "method": method, "source": "a red ball", "noise_level": "1.000000"}
        assert torch.allclose(tensors["start"], tensors["noise"], atol=1e-6), "at level 1"
        again = api.sample("a red ball", prior="gaussian", latents=tensors["noise"], steps=100, sampler="heun", cfg=1)
        assert (again[0].mean((1, 2)) - torch.tensor(COLOURS["red"])).abs().max() < 0.03
        figures = json.loads((folder / "metrics.json").read_text())
        assert figures["psnr"] > 28 and figures["bound_psnr"] > 45
        assert figures["noise_std"] < 0.1, "the mean of a mode comes from no noise"
        assert figures["network_calls"] == 2 * figures["inversion_calls"]
        assert np.abs(np.asarray(Image.open(folder / "save/p.png")).astype(float) - RED).mean() < 10


def test_a_coarse_inversion_is_told_as_such(launcher: Any, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (190, 60, 40)).save(tmp_path / "p.png")
    line = [*LINE, f"image={tmp_path}/p.png", "method=euler", f"exp_root_dir={tmp_path}"]
    fine, coarse = (json.loads((launcher(*line, f"steps={n}")[1] / "metrics.json").read_text()) for n in (60, 3))
    assert coarse["psnr"] < fine["psnr"] - 3 and coarse["bound_psnr"] == fine["bound_psnr"] > fine["psnr"]
    assert abs(coarse["psnr"] - coarse["to_bound_psnr"]) < 1


def test_a_lower_level_is_stored_with_its_start(launcher: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / "p.png")
    code, folder, _, _ = launcher(*LINE, f"image={tmp_path}/p.png", "t_start=0.6", f"exp_root_dir={tmp_path}")
    with safe_open(folder / "save/p.safetensors", "pt") as file:
        noise, x0, start = (file.get_tensor(name) for name in ("noise", "latents", "start"))
        assert code == 0 and file.metadata()["noise_level"] == "0.600000"
    assert torch.allclose(start, 0.4 * x0 + 0.6 * noise, atol=1e-6)
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["ssim"] is None, "eight pixels are fewer than the window"


def test_a_folder_of_pictures_and_a_method_without_noise(launcher: Any, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), RED).save(folder / f"{name}.png")
    code, run, _, _ = launcher(*LINE, f"image={folder}", f"exp_root_dir={tmp_path}")
    assert code == 0 and {path.name for path in (run / "save").iterdir()} == {
        "a.png",
        "b.png",
        "a.safetensors",
        "b.safetensors",
        "grid.png",
        "table.md",
    }
    code, _, _, err = launcher(*LINE, f"image={folder}", "method=flowedit", f"exp_root_dir={tmp_path}")
    assert code == 2 and "flowedit finds no noise; task=invert has euler" in err


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    one = torch.nn.functional.interpolate(torch.rand(2, 3, 6, 7, generator=draw), size=(24, 30), mode="bilinear")
    return one, (one + 0.1 * torch.randn(one.shape, generator=draw)).clamp(0, 1)


def test_psnr_and_ssim_are_those_of_skimage() -> None:
    one, other = (torch.cat([x, 0.05 * x]) for x in pair())
    for i, (x, y) in enumerate(zip(one.permute(0, 2, 3, 1).numpy(), other.permute(0, 2, 3, 1).numpy(), strict=True)):
        assert psnr(one, other)[i].item() == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), abs=1e-5)
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        wanted = structural_similarity(x, y, channel_axis=2, **gaussian)
        assert ssim(one, other)[i].item() == pytest.approx(wanted, abs=1e-5)


def test_a_part_is_measured_by_itself() -> None:
    one, other = pair()
    part = torch.zeros(1, 1, 24, 30)
    part[:, :, 3:9, 4:20] = 1
    wanted = (one - other)[:, :, 3:9, 4:20].double().square().flatten(1).mean(1)
    assert torch.allclose(mse(one, other, part), wanted, atol=1e-12)
    assert torch.allclose(psnr(one, other, part), -10 * wanted.log10())
    found = likeness(one[:1], one[:1])
    assert found["psnr"] is None and found["ssim"] == pytest.approx(1)
    assert likeness(one[:1], other[:1], 0 * part)["psnr"] is None
    for bad in (one[:, :, :5], one[:, :1]):
        with pytest.raises(ValueError, match="got pictures"):
            ssim(bad, other)
