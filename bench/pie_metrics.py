"""The protocol of PIE-Bench (Ju et al., ICLR 2024, cure-lab/PnPInversion): file format, masks and figures.

`mapping_file.json`: {id: {"image_path", "original_prompt", "editing_prompt", "editing_type_id", "mask", ...}}; brackets
in a prompt mark the difference. A mask is run-length code [start, length, start, length, ...] over the rows of a
512 x 512 picture, 1 where it is to be edited; its outermost pixels always count as edited.

Figures of a pair of uint8 pictures (H, W, 3): outside the mask PSNR, MSE, SSIM and LPIPS (squeeze) of both pictures
with the edited part blackened; the structure distance, mean squared difference of the self-similarities of DINO
ViT-B/8's last keys at 224 pixels; CLIP score (100 cos, at least 0) of the target prompt with the whole picture and with
its edited part. A figure whose weights are not given is left out; one over an empty region is NaN.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threestudio_rf.app.report.likeness import mse, psnr, ssim
from threestudio_rf.app.report.lpips import LPIPS, load_lpips

SIDE = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FACTORS = {"structure": 1e3, "psnr": 1.0, "lpips": 1e3, "mse": 1e4, "ssim": 1e2, "clip_whole": 1.0, "clip_edited": 1.0}
"""Columns of the table and what their figures are multiplied by, as in the paper."""
Compare = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Item:
    """One edit of the benchmark; `mask` (H, W) is 1 where it is to be edited."""

    name: str
    image: str
    source: str
    target: str
    kind: str
    mask: Tensor


def decode_mask(code: Sequence[int], side: int = SIDE) -> Tensor:
    """(side, side) float, 1 in the runs and along the border; ValueError for an odd number of entries."""
    if len(code) % 2:
        raise ValueError(f"a mask has pairs of start and length, got {len(code)} numbers")
    flat = torch.zeros(side * side)
    for start, length in zip(code[::2], code[1::2], strict=True):
        flat[start : start + length] = 1
    mask = flat.reshape(side, side)
    mask[0] = mask[-1] = mask[:, 0] = mask[:, -1] = 1
    return mask


def items_of(data: Path, kinds: Sequence[str] = ()) -> list[Item]:
    """The edits of `<data>/mapping_file.json`, those of the types `kinds` if any are named, in the file's order."""
    found = []
    for name, entry in json.loads((data / "mapping_file.json").read_text("utf-8")).items():
        kind = str(entry["editing_type_id"])
        if kinds and kind not in kinds:
            continue
        texts = [entry[key].replace("[", "").replace("]", "") for key in ("original_prompt", "editing_prompt")]
        found.append(Item(name, entry["image_path"], texts[0], texts[1], kind, decode_mask(entry["mask"])))
    return found


def self_similarity(keys: Tensor) -> Tensor:
    """Cosines (T, T) between the tokens of `keys` (T, D)."""
    length = keys.norm(dim=1, keepdim=True)
    return keys @ keys.T / (length @ length.T).clamp(min=1e-8)


def dino(folder: Path) -> Compare:
    """The structure distance with the ViT of a local folder of transformers (facebook/dino-vitb8)."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False).eval()
    names = [name for name, _ in model.named_modules() if name.endswith(("attention.key", "attention.k_proj"))]
    seen: list[Tensor] = []
    model.get_submodule(names[-1]).register_forward_hook(lambda _module, _given, keys: seen.append(keys[0]))
    side = model.config.image_size

    @torch.no_grad()
    def keys_of(picture: Tensor) -> Tensor:
        small = F.interpolate(picture, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (small.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        model(pixel_values=(small - mean) / std)
        return seen.pop()

    def distance(one: Tensor, other: Tensor) -> float:
        return float(F.mse_loss(self_similarity(keys_of(one)), self_similarity(keys_of(other))))

    return distance


def clip(folder: Path) -> Callable[[Tensor, str], float]:
    """The CLIP score with the model of a local folder of transformers (openai/clip-vit-large-patch14)."""
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    @torch.no_grad()
    def score(picture: Tensor, text: str) -> float:
        image = (255 * picture[0]).byte().permute(1, 2, 0).numpy()
        given = processor(text=[text], images=[image], return_tensors="pt", padding=True, truncation=True)
        found = model(**given)
        return max(0.0, 100 * float(F.cosine_similarity(found.image_embeds, found.text_embeds)))

    return score


@dataclass
class Metrics:
    """The figures whose weights are there; `missing` says which are left out and what they need."""

    lpips: LPIPS | None = None
    structure: Compare | None = None
    clip: Callable[[Tensor, str], float] | None = None
    missing: list[str] = field(default_factory=list)

    @staticmethod
    def load(*, clip_folder: Path | None, dino_folder: Path | None, lpips_folder: Path | None) -> Metrics:
        """From local folders; None leaves a figure out."""
        found = Metrics()
        for folder, name, option in (
            (dino_folder, "structure distance", "--dino"),
            (lpips_folder, "LPIPS", "--lpips"),
            (clip_folder, "CLIP scores", "--clip"),
        ):
            if folder is None:
                found.missing.append(f"{name}: left out, {option} names no folder")
        found.structure = dino(dino_folder) if dino_folder else None
        found.lpips = load_lpips(lpips_folder, "squeeze") if lpips_folder else None
        found.clip = clip(clip_folder) if clip_folder else None
        return found

    def __call__(self, before: Tensor, after: Tensor, item: Item) -> dict[str, float]:
        """The figures of one edit, pictures (3, H, W) in [0, 1] of the mask's size."""
        mask = item.mask
        kept, one, other = 1 - mask, before[None], after[None]
        found: dict[str, float] = {}
        if self.structure is not None:
            found["structure"] = self.structure(one, other)
        pair, empty = (one * kept, other * kept), not bool(kept.any())
        compare: dict[str, Any] = {"psnr": psnr, "lpips": self.lpips, "mse": mse, "ssim": ssim}
        for name, figure in compare.items():
            if figure is not None:
                found[name] = float("nan") if empty else float(figure(*pair))
        if self.clip is not None:
            found["clip_whole"] = self.clip(other, item.target)
            found["clip_edited"] = self.clip(other * mask, item.target) if bool(mask.any()) else float("nan")
        return found


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Means over the edits by method as Markdown, NaN and infinities left out, in the units of the paper."""
    shown = [name for name in FACTORS if any(name in figures for each in rows.values() for figures in each)]
    units = {1e3: " x1e3", 1e4: " x1e4", 1e2: " x1e2", 1.0: ""}
    lines = ["| method | edits | " + " | ".join(name + units[FACTORS[name]] for name in shown) + " |"]
    lines.append("|---" * (2 + len(shown)) + "|")
    for method, each in rows.items():
        cells = []
        for name in shown:
            values = np.array([figures[name] for figures in each if name in figures])
            values = values[np.isfinite(values)]
            cells.append(f"{FACTORS[name] * values.mean():.2f}" if len(values) else "-")
        lines.append("| " + " | ".join([method, str(len(each)), *cells]) + " |")
    return "\n".join(lines)
