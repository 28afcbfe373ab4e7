"""AdamW over the parameter groups of a scene, each with a learning rate that may change over steps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn

from threestudio_rf.trainer.ramp import Value

GROUPS = ("encoding", "networks", "background", "image")
NAMES = {"background": "background", "encoding": "encoding", "values": "image"}


def group_of(name: str) -> str:
    """The group of a parameter by its dotted name: background, encoding, the values of an image, else networks."""
    return next((NAMES[part] for part in name.split(".") if part in NAMES), "networks")


def make_optimiser(
    scene: nn.Module,
    rates: Mapping[str, Value],
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """AdamW with the groups of `GROUPS` that the scene has, at the rates of step 0."""
    named: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, parameter in scene.named_parameters():
        named[group_of(name)].append(parameter)
    groups = [{"name": name, "params": list_, "lr": rates[name](0)} for name, list_ in named.items() if list_]
    if not groups:
        raise ValueError("the scene has no parameters, expected at least one")
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=weight_decay)


def set_rates(optimiser: torch.optim.Optimizer, rates: Mapping[str, Value], step: int) -> None:
    """Give every group its learning rate of `step`."""
    for group in optimiser.param_groups:
        group["lr"] = rates[group["name"]](step)


def gradient_norm(optimiser: torch.optim.Optimizer) -> torch.Tensor:
    """The norm of the whole gradient; not finite when any part is not."""
    parameters = chain.from_iterable(group["params"] for group in optimiser.param_groups)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
