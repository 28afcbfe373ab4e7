"""What a prior's folder says before anything is loaded: where its parts are, and the shape of its latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder import read_json, weight_files
from threestudio_rf.priors.hub import locate

TINY_FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]


@dataclass(frozen=True)
class Shape:
    """What the configs say: latents (channels, size, size) natively; the network needs their sides to be multiples of
    `patch`, the VAE makes one latent of `factor` x `factor` pixels."""

    channels: int
    size: int
    patch: int
    factor: int

    def check_latents(self, x: Tensor) -> None:
        """ValueError unless x is (B, channels, h, w) with h, w multiples of `patch`."""
        self._check("latents", x, self.channels, self.patch)

    def check_image(self, x: Tensor) -> None:
        """ValueError unless x is (B, 3, H, W) with H, W multiples of factor times patch."""
        self._check("image", x, 3, self.factor * self.patch)

    @staticmethod
    def _check(name: str, x: Tensor, channels: int, multiple: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            expected = f"(B, {channels}, H, W) with H, W multiples of {multiple}"
            raise ValueError(f"{name}: got {tuple(x.shape)}, expected {expected}")


def vae_factor(folder: Path, channels: int) -> int:
    """Pixels per latent and side of a VAE's folder. PriorError unless it makes latents of `channels`."""
    config = read_json(folder / "config.json")
    found = config.get("latent_channels", 4)
    if found != channels:
        raise PriorError(f"{folder}: this VAE makes {found} latent channels, the network reads {channels}")
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or ()
    return 2 ** max(0, len(levels) - 1)


class Places(NamedTuple):
    """The prior's folder and that of its VAE."""

    folder: Path
    vae: Path


def places(
    path: str | Path,
    fetch: Callable[[str, bool], Path],
    complete: Callable[[Path], None],
    *,
    tiny_vae: str,
    offline: bool,
) -> Places:
    """Where a prior and its VAE are, after both were looked at; `fetch` and `complete` as in `hub.locate`.

    `tiny_vae`: folder or owner/name of an AutoencoderTiny to use instead of the prior's own VAE, "" for that one.
    """
    folder = locate(str(path), fetch, complete, offline=offline)
    return Places(folder, locate_tiny(tiny_vae, offline=offline) if tiny_vae else folder / "vae")


def locate_tiny(name: str, *, offline: bool = False) -> Path:
    """Folder of the AutoencoderTiny `name`, a local folder or owner/name; PriorError when it is something else."""

    def complete(folder: Path) -> None:
        found = read_json(folder / "config.json").get("_class_name")
        if found != "AutoencoderTiny":
            raise PriorError(f"prior.vae={name} holds a {found}, expected an AutoencoderTiny such as madebyollin/taesd")
        weight_files(folder)

    def fetch(repository: str, local_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=TINY_FILES, local_files_only=local_only))

    return locate(name, fetch, complete, offline=offline)
