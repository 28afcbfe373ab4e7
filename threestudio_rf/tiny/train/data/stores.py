"""Data shared by the parts of a training, made once and kept in its folder: views, first stage, latents, failures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from threestudio_rf.priors.folder import architecture
from threestudio_rf.priors.tiny import known_words, load_tiny, weights_folder
from threestudio_rf.tiny.train.data.failures import VIEWS, Failures, failed_samples
from threestudio_rf.tiny.train.data.latents import Latents, encode_world
from threestudio_rf.tiny.train.ship import SHIPPED
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import Views, random_world

TRAIN_SEED, HELD_OUT_SEED, JUDGE_SEED = 0, 1_000_000, 2_000_000
SIZE = 128
"""Height and width of the pictures that first stage and priors are trained on; the judge looks at 64."""


def load_world(
    folder: Path, per_shape: int, seed: int, *, size: int = SIZE, device: torch.device | str = "cpu"
) -> Views:
    """Views of `size` pixels of the world, rendered on `device` and kept in `folder`, so that a resumed run does not
    render them again."""
    from safetensors.torch import load_file, save_file

    file = folder / f"world-{seed}-{per_shape}-{size}.safetensors"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(random_world(per_shape, seed, size=size, device=device)._asdict(), file)
    return Views(**load_file(file))


def load_failures(folder: Path, n: int, seed: int) -> Failures:
    """Failed samples out of about `n` of each shipped flow, kept in `folder`."""
    from safetensors.torch import load_file, save_file

    file = folder / f"failures-{seed}-{n}.safetensors"
    if not file.exists():
        parts = []
        for name in ("tiny_sd3", "tiny_instaflow"):
            known = known_words(weights_folder() / name.replace("_", "-"))
            names = [shape for shape in SHAPES if shape in known]
            views = min(VIEWS, 20 * n)
            parts.append(failed_samples(load_tiny(name), names, n, seed, views=views, cache=folder / "banks"))
        joined = Failures(*(torch.cat(column).contiguous() for column in zip(*parts, strict=True)))
        save_file(joined._asdict(), file)
    return Failures(**load_file(file))


def load_vae(folder: Path, device: torch.device | str = "cpu") -> Any:
    """The first stage of `<folder>/vae-final`, in eval mode; the shipped one is copied there where it is missing."""
    if not (folder / "vae-final").exists():
        shutil.copytree(weights_folder() / SHIPPED[0] / "vae", folder / "vae-final")
    vae: Any = architecture.load_vae(folder / "vae-final")
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


def load_latents(
    folder: Path, vae: Any, per_shape: int, copies: int, *, size: int = SIZE, device: torch.device | str = "cpu"
) -> Latents:
    """The encoded training images of `size` pixels, kept in `folder`; the pictures themselves where `vae` is None."""
    from safetensors.torch import load_file, save_file

    kind = "latents" if vae is not None else "pictures"
    file = folder / f"{kind}-{per_shape}-{copies}-{size}-grouped.safetensors"
    if not file.exists():
        world = load_world(folder, per_shape, TRAIN_SEED, size=size, device=device)
        save_file(encode_world(vae, world, copies, TRAIN_SEED)._asdict(), file)
    return Latents(**load_file(file))
