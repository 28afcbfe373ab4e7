"""The protocol of PIE-Bench on a synthetic sample in its format.

Oracles: skimage, a run-length coder written the other way round, transformers' own cosine, and both networks of LPIPS
written as functions of torchvision's weight names.

Seen to fail: runs over columns, lengths read as ends, no border; the edited part kept instead of blackened, means over
the unedited pixels only; brackets left in a prompt; keys of the first layer, similarity without its norms; a missing
folder that is not told; a picture of another size that is measured; LPIPS with a tap one layer off, without ceil_mode,
with features that are not of unit length, without its shift.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.report.lpips import load_lpips, nets

BENCH = str(Path(__file__).resolve().parents[2] / "bench")


@pytest.fixture(scope="module")
def pie():
    sys.path.insert(0, BENCH)
    yield importlib.import_module("pie"), importlib.import_module("pie_metrics")
    sys.path.remove(BENCH)


def alex_stages(w: dict[str, Tensor], x: Tensor) -> Iterator[Tensor]:
    """AlexNet's five activations from torchvision's weights."""
    x = F.conv2d(x, w["0.weight"], w["0.bias"], 4, 2).relu()
    yield x
    x = F.conv2d(F.max_pool2d(x, 3, 2), w["3.weight"], w["3.bias"], 1, 2).relu()
    yield x
    x = F.max_pool2d(x, 3, 2)
    for layer in (6, 8, 10):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], 1, 1).relu()
        yield x


def squeeze_stages(w: dict[str, Tensor], x: Tensor) -> Iterator[Tensor]:
    """SqueezeNet 1.1's activations at LPIPS's seven cuts: relu1, fire 3, 5, 6, 7, 8, 9 (1-based names of the paper)."""

    def conv(x: Tensor, name: str, pad: int = 0, stride: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, pad).relu()

    def fire(x: Tensor, layer: int) -> Tensor:
        x = conv(x, f"{layer}.squeeze")
        return torch.cat([conv(x, f"{layer}.expand1x1"), conv(x, f"{layer}.expand3x3", 1)], 1)

    x = conv(x, "0", stride=2)
    yield x
    for pair in ((3, 4), (6, 7)):
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for layer in pair:
            x = fire(x, layer)
        yield x
    x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for layer in (9, 10, 11, 12):
        x = fire(x, layer)
        yield x


Stages = Callable[[dict[str, Tensor], Tensor], Iterator[Tensor]]
STAGES: dict[str, tuple[Stages, tuple[int, ...]]] = {
    "alex": (alex_stages, (64, 192, 384, 256, 256)),
    "squeeze": (squeeze_stages, (64, 128, 256, 384, 384, 512, 512)),
}


def encoded(mask: np.ndarray) -> list[int]:
    """Run-length code of a mask by its changes."""
    flat = np.concatenate([[0], mask.reshape(-1), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return [int(x) for start, end in zip(edges[::2], edges[1::2], strict=True) for x in (start, end - start)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two edits: one with a mask in the middle, one whose mask is everything."""
    draw, mapping = np.random.default_rng(0), {}
    for name, kind in (("000000000000", "0"), ("611000000000", "6")):
        image = f"{kind}_folder/{name}.jpg"
        path = tmp_path / "annotation_images" / image
        path.parent.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 255, (512, 512, 3), dtype=np.uint8)).save(path)
        mask = np.zeros((512, 512), dtype=np.int64)
        mask[100:200, 50:300] = 1
        mapping[name] = {
            "image_path": image,
            "original_prompt": "a [red] ball",
            "editing_prompt": "a [blue] ball",
            "editing_instruction": "make it blue",
            "editing_type_id": kind,
            "blended_word": "ball ball",
            "mask": encoded(mask if kind == "0" else np.ones_like(mask)),
        }
    (tmp_path / "mapping_file.json").write_text(json.dumps(mapping))
    return tmp_path


def test_the_format_is_read(pie: Any, data: Path) -> None:
    first, second = pie[1].items_of(data)
    assert (first.source, first.target, first.kind) == ("a red ball", "a blue ball", "0")
    assert first.mask.shape == (512, 512) and bool(first.mask[100:200, 50:300].all())
    assert first.mask.sum() == 100 * 250 + 4 * 511, "the outermost pixels count as edited"
    assert bool(first.mask[[0, -1]].all()) and bool(first.mask[:, [0, -1]].all()) and bool(second.mask.all())
    assert [item.name for item in pie[1].items_of(data, ["6"])] == ["611000000000"]
    assert pie[1].decode_mask([3, 100], side=4).flatten()[3:].all(), "a run that leaves the picture ends with it"
    with pytest.raises(ValueError, match="pairs of start and length"):
        pie[1].decode_mask([1, 2, 3])


def test_figures_are_those_of_both_pictures_with_the_edited_part_blackened(pie: Any, data: Path) -> None:
    item = pie[1].items_of(data)[0]
    draw = torch.Generator().manual_seed(0)
    before = torch.rand(3, 512, 512, generator=draw)
    after = torch.where(item.mask > 0, torch.rand(3, 512, 512, generator=draw), (before + 0.1).clamp(0, 1))
    found = pie[1].Metrics()(before, after, item)
    assert list(found) == ["psnr", "mse", "ssim"]
    one, other = (x.numpy() * (1 - item.mask.numpy()) for x in (before, after))
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(one, other, data_range=1), abs=1e-4)
    assert found["mse"] == pytest.approx(np.square(one.astype(float) - other).mean(), rel=1e-5)
    everything = pie[1].items_of(data)[1]
    assert all(np.isnan(value) for value in pie[1].Metrics()(before, after, everything).values())


def test_the_structure_distance_compares_cosines_of_the_last_keys(pie: Any, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 16}
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**shape, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    distance = pie[1].dino(tmp_path)
    one, other = torch.rand(2, 1, 3, 48, 48)
    assert distance(one, one) == 0 and distance(one, other) > 0

    def keys(picture: torch.Tensor) -> torch.Tensor:
        """The input of the last layer through its norm and its key map, by hand."""
        small = torch.nn.functional.interpolate(picture, (32, 32), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (pie[1].MEAN, pie[1].STD))
        with torch.no_grad():
            hidden = model(pixel_values=(small - mean) / std, output_hidden_states=True).hidden_states[-2]
            layer = next(m for name, m in model.named_modules() if name.endswith("layer.1") or name == "layers.1")
            norm = layer.layernorm_before(hidden)
            key = next(m for name, m in layer.named_modules() if name.endswith(("key", "k_proj")))
            return torch.nn.functional.normalize(key(norm)[0], dim=1)

    wanted = (keys(one) @ keys(one).T - keys(other) @ keys(other).T).square().mean()
    assert distance(one, other) == pytest.approx(float(wanted), rel=1e-4)


def test_edits_are_made_in_the_benchmarks_layout_and_rated(
    pie: Any, data: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    line = [
        "pie.py",
        "--data",
        str(data),
        "--prior",
        "gaussian",
        "--methods",
        "flowedit,sdedit",
        "--out",
        f"{tmp_path}/out",
    ]
    monkeypatch.setattr(sys, "argv", [*line, "--device", "cpu"])
    pie[0].main()
    out = capsys.readouterr().out
    assert "CLIP scores: left out, --clip names no folder" in out and "structure distance: left out" in out
    rows = [row.split("|")[1:3] for row in out.splitlines() if row.startswith("|")][2:]
    assert [[cell.strip() for cell in row] for row in rows] == [["flowedit", "2"], ["sdedit", "2"]]
    made = tmp_path / "out/flowedit/annotation_images/0_folder/000000000000.jpg"
    assert Image.open(made).size == (512, 512) and Image.open(made).format == "PNG"
    figures = json.loads((tmp_path / "out/figures.json").read_text())
    assert set(figures) == {"flowedit", "sdedit"} and len(figures["sdedit"]) == 2
    (tmp_path / "theirs/0_folder").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs/0_folder/000000000000.jpg")
    monkeypatch.setattr(sys, "argv", [*line[:3], "--score", f"{tmp_path}/theirs", "--out", f"{tmp_path}/out"])
    pie[0].main()
    captured = capsys.readouterr()
    assert "611000000000 is left out" in captured.err and "got 512 x 512, 64 x 64" in captured.err
    assert "| theirs | 0 |" in captured.out


def test_the_table_has_means_in_the_papers_units(pie: Any) -> None:
    rows = {"a": [{"psnr": 20.0, "mse": 0.01}, {"psnr": 30.0, "mse": float("nan")}], "b": []}
    lines = pie[1].table(rows).splitlines()
    assert lines[0] == "| method | edits | psnr | mse x1e4 |"
    assert lines[2:] == ["| a | 2 | 25.00 | 100.00 |", "| b | 0 | - | - |"]


def by_hand(stages: Stages, weights: dict[str, Tensor], linear: list[Tensor], one: Tensor, other: Tensor) -> Tensor:
    """LPIPS (B,) as its paper writes it: mean over places of w . (unit features' difference)^2, summed over layers."""
    centre, spread = (torch.tensor(x).reshape(3, 1, 1) for x in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    total = torch.zeros(len(one))
    pairs = (stages(weights, (2 * x - 1 - centre) / spread) for x in (one, other))
    for x, y, w in zip(*pairs, linear, strict=True):
        gap = F.normalize(x, dim=1) - F.normalize(y, dim=1)
        total = total + torch.einsum("bchw,c->b", gap.square(), w) / (x.shape[2] * x.shape[3])
    return total


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_lpips_is_the_weighted_distance_of_unit_features(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, (stages, widths) = nets()[name], STAGES[name]
    weights = {key: torch.randn(x.shape) * 0.1 for key, x in net.features.state_dict().items()}
    linear = [torch.rand(width) for width in widths]
    whole = {f"features.{key}": x for key, x in weights.items()} | {"classifier.1.weight": torch.zeros(2)}
    torch.save(whole, tmp_path / net.files[0].replace("*", "-1"))
    lines = {f"lin{i}.model.1.weight": w.reshape(1, -1, 1, 1) for i, w in enumerate(linear)}
    torch.save(lines, tmp_path / net.files[1])
    distance = load_lpips(tmp_path)
    one, other = torch.rand(2, 2, 3, 60, 60)
    found = distance(one, other)
    assert found.shape == (2,) and bool((found > 0.01).all())
    assert torch.allclose(found, by_hand(stages, weights, linear, one, other), rtol=1e-4)
    assert torch.equal(distance(one, one), torch.zeros(2))


def test_a_folder_without_weights_of_lpips_is_told(tmp_path: Path, launcher: Any) -> None:
    with pytest.raises(UserError, match=r"alexnet\*.pth and alex.pth or squeezenet1_1\*.pth"):
        load_lpips(tmp_path)
    (tmp_path / "alexnet-1.pth").write_bytes(b"nothing")
    (tmp_path / "alex.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no weights of LPIPS, expected squeezenet"):
        load_lpips(tmp_path, "squeeze")
    Image.new("RGB", (16, 16)).save(tmp_path / "p.png")
    line = ["task=edit", "prior=gaussian", "prompt=a blue ball", f"image={tmp_path}/p.png", f"exp_root_dir={tmp_path}"]
    code, _, out, err = launcher(*line, f"lpips={tmp_path}/none")
    assert code == 2 and "no weights of LPIPS" in err and "licence" not in out
