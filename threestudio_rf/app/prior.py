"""Priors from settings: one row per name. `build.py` shows these names too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from threestudio_rf.app.console import LOG
from threestudio_rf.app.settings import PriorConfig
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.parts import PartOptions
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3
from threestudio_rf.priors.tiny import EMBEDDED, load_tiny
from threestudio_rf.tiny.world import COLOURS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(prior: PriorConfig, device: torch.device) -> torch.dtype:
    """The number format of the network: auto is fp32 on a CPU and for embedded priors, else bf16."""
    if prior.dtype == "auto":
        small = device.type == "cpu" or prior.name in EMBEDDED
        return torch.float32 if small else torch.bfloat16
    if prior.dtype == "fp16" and device.type == "cpu":
        LOG.warning("prior.dtype=fp16 is slower than fp32 on a CPU; fp32 is used (bf16 on request)")
        return torch.float32
    return DTYPES[prior.dtype]


def text_cache(folder: str) -> Path:
    """Where embedded texts are kept."""
    if folder:
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "threestudio_rf" / "texts"


def part_options(config: PriorConfig) -> PartOptions:
    """How network and VAE are kept."""
    return PartOptions(
        vae=config.vae,
        vae_checkpointing=config.vae_checkpointing,
        storage=config.storage,
        quantization=config.quantization,
        offload=config.offload,
    )


def _tiny(config: PriorConfig, device: torch.device) -> Prior:
    return load_tiny(
        config.name,
        device=device,
        dtype=pick_dtype(config, device),
        mirror_time=config.mirror_time,
        options=part_options(config),
    )


def _sd3(config: PriorConfig, device: torch.device) -> Prior:
    return load_sd3(
        config.path,
        device=device,
        dtype=pick_dtype(config, device),
        revision=config.revision,
        variant=config.variant,
        t5=config.t5,
        max_sequence_length=config.max_sequence_length,
        cache=text_cache(config.cache),
        options=part_options(config),
        offline=config.offline,
    )


def _sd(config: PriorConfig, device: torch.device) -> Prior:
    return load_sd(
        config.path,
        device=device,
        dtype=pick_dtype(config, device),
        kind="flow" if config.name == "instaflow" else config.kind,
        mirror_time=config.mirror_time,
        revision=config.revision,
        variant=config.variant,
        cache=text_cache(config.cache),
        name=config.name,
        options=part_options(config),
        offline=config.offline,
    )


def _gaussian(config: PriorConfig, device: torch.device) -> Prior:
    colours = 2 * torch.tensor(list(COLOURS.values())) - 1
    means = colours[:, :, None, None].expand(-1, -1, config.size, config.size).to(device)
    return GaussianPrior(means, config.std, names=list(COLOURS))


PRIORS: dict[str, Callable[[PriorConfig, torch.device], Prior]] = {
    "tiny_sd3": _tiny,
    "tiny_sd": _tiny,
    "tiny_sd_v": _tiny,
    "tiny_instaflow": _tiny,
    "sd3": _sd3,
    "sd": _sd,
    "instaflow": _sd,
    "gaussian": _gaussian,
}


def build_prior(config: PriorConfig, device: torch.device) -> Prior:
    """The frozen network; its licence is printed."""
    prior = PRIORS[config.name](config, device)
    LOG.info("prior %s, licence: %s", prior.name, prior.licence)
    return prior


def prior_id(config: PriorConfig) -> dict[str, str]:
    """What identifies a prior in a checkpoint and in run.json."""
    found = {"name": config.name, "path": config.path, "revision": config.revision or ""}
    found |= {} if config.kind == "auto" else {"kind": config.kind}
    return found | ({"mirror_time": "mirrored time"} if config.mirror_time else {})
