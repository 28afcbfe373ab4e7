"""Priors from settings: one row per name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from threestudio_rf.app.console import LOG
from threestudio_rf.app.errors import user_path
from threestudio_rf.app.settings.groups import PriorConfig
from threestudio_rf.priors.adapters.base import Adapter
from threestudio_rf.priors.adapters.load import load_adapted
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.facts import FACTS, Facts
from threestudio_rf.priors.folder.changes import Changes, Delta
from threestudio_rf.priors.folder.lora import parse_loras
from threestudio_rf.priors.folder.parts import PartOptions
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3
from threestudio_rf.priors.tiny import known_words, load_tiny, weights_folder
from threestudio_rf.priors.views import HEIGHTS
from threestudio_rf.tiny.world.bank import BankCameras
from threestudio_rf.tiny.world.exact import ExactPrior
from threestudio_rf.tiny.world.views import COLOURS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PriorRow:
    """What the application knows of a prior: how it is built, and what is known before that."""

    build: Callable[[PriorConfig, torch.device], Prior]
    facts: Facts


def facts_of(config: PriorConfig) -> Facts:
    """Facts of the prior that the settings name."""
    return PRIORS[config.name].facts


def on_table(config: PriorConfig) -> bool:
    """Whether the prior's noise levels are those of a table, as far as its settings tell."""
    return facts_of(config).levels == "table" and config.kind != "flow"


def multiple_of(config: PriorConfig) -> int:
    """The number of which the sides of a picture must be multiples."""
    facts = facts_of(config)
    return facts.multiple or config.size or facts.size


def pick_dtype(prior: PriorConfig, device: torch.device) -> torch.dtype:
    """The number format of the network: auto is fp32 on a CPU and for embedded priors, else bf16."""
    if prior.dtype == "auto":
        small = device.type == "cpu" or facts_of(prior).source == "embedded"
        return torch.float32 if small else torch.bfloat16
    if prior.dtype == "fp16" and device.type == "cpu":
        LOG.warning("prior.dtype=fp16 is slower than fp32 on a CPU; fp32 is used (bf16 on request)")
        return torch.float32
    return DTYPES[prior.dtype]


def text_cache(folder: str) -> Path:
    """Where embedded texts are kept."""
    return user_path(folder, "prior.cache") if folder else _caches() / "texts"


def bank_cache(folder: str) -> Path:
    """Where the true views of the tiny world are kept; `folder` is that of the embedded texts."""
    return (user_path(folder, "prior.cache") if folder else _caches()) / "banks"


def _caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "threestudio_rf"


def knows_octants(config: PriorConfig) -> bool:
    """Whether the prior's captions named octant and height of the camera."""
    facts = facts_of(config)
    if "octants" not in facts.views or facts.source != "embedded":
        return "octants" in facts.views
    folder = weights_folder() / config.name.replace("_", "-")
    return folder.is_dir() and set(HEIGHTS) <= set(known_words(folder))


def wording(config: PriorConfig) -> str:
    """How the prior is asked for a view: four, octants or camera; auto is octants where it knows them and no view has
    a prompt of its own."""
    if config.views != "auto":
        return config.views
    own = (config.prompt_side, config.prompt_front, config.prompt_back, config.prompt_overhead)
    return "octants" if knows_octants(config) and own == (None,) * 4 else "four"


def part_options(config: PriorConfig) -> PartOptions:
    """How network and VAE are kept."""
    return PartOptions(
        vae=config.vae,
        vae_checkpointing=config.vae_checkpointing,
        storage=config.storage,
        quantization=config.quantization,
        offload=config.offload,
        offload_blocks=config.offload_blocks,
        compile=config.compile,
        changes=changes_of(config),
    )


def changes_of(config: PriorConfig) -> Changes:
    """LoRAs and weight difference that the settings ask for; PriorError for what cannot be read."""
    delta = Delta(config.delta, config.delta_from or config.path, config.delta_scale) if config.delta else None
    return Changes(parse_loras(config.lora), delta, config.offline)


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
    kinds = facts_of(config).kinds
    return load_sd(
        config.path,
        device=device,
        dtype=pick_dtype(config, device),
        kind=kinds[0] if len(kinds) == 1 else config.kind,
        mirror_time=config.mirror_time,
        revision=config.revision,
        variant=config.variant,
        cache=text_cache(config.cache),
        name=config.name,
        options=part_options(config),
        offline=config.offline,
    )


def _folder(config: PriorConfig, device: torch.device) -> Prior:
    name = f"threestudio_rf.priors.adapters.{facts_of(config).adapter}"
    adapter: Adapter = import_module(name).ADAPTER
    return load_adapted(
        adapter,
        config.path,
        device=device,
        dtype=pick_dtype(config, device),
        revision=config.revision,
        variant=config.variant,
        size=config.size,
        cache=text_cache(config.cache),
        options=part_options(config),
        offline=config.offline,
    )


def _gaussian(config: PriorConfig, device: torch.device) -> Prior:
    colours = 2 * torch.tensor(list(COLOURS.values())) - 1
    size = config.size or facts_of(config).size
    means = colours[:, :, None, None].expand(-1, -1, size, size).to(device)
    return GaussianPrior(means, config.std, names=list(COLOURS))


def _exact(config: PriorConfig, device: torch.device) -> Prior:
    size, cameras = config.size or facts_of(config).size, BankCameras(config.bank_views, (1.8, 1.8), (46.0, 46.0))
    return ExactPrior(size=size, cameras=cameras, q=config.bank_std, cache=bank_cache(config.cache), device=device)


ADAPTERS: dict[str, Callable[[PriorConfig, torch.device], Prior]] = {
    "tiny": _tiny,
    "exact": _exact,
    "sd3": _sd3,
    "sd": _sd,
    "gaussian": _gaussian,
}
"""Adapters that are opened in a way of their own; all others are files of `priors/adapters`."""
PRIORS = {name: PriorRow(ADAPTERS.get(facts.adapter, _folder), facts) for name, facts in FACTS.items()}
"""Every prior by `prior.name`."""


def build_prior(config: PriorConfig, device: torch.device) -> Prior:
    """The frozen network; its licence is printed."""
    prior = PRIORS[config.name].build(config, device)
    LOG.info("prior %s, licence: %s", prior.name, prior.licence)
    return prior


def prior_id(config: PriorConfig) -> dict[str, str]:
    """Identity of a prior, as checkpoints and run.json store it."""
    found = {"name": config.name, "path": config.path, "revision": config.revision or ""}
    found |= {} if config.kind == "auto" else {"kind": config.kind}
    found |= {"lora": config.lora} if config.lora else {}
    if config.delta:
        found["delta"] = f"{config.delta} less {config.delta_from or config.path} times {config.delta_scale:g}"
    found |= {"size": str(config.size)} if config.size and facts_of(config).source == "hub" else {}
    return found | ({"mirror_time": "mirrored time"} if config.mirror_time else {})
