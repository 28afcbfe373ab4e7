"""AdamW over the parameter groups of a scene, each with a learning rate that may change over steps."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn

from threestudio_rf.scenes.base import Scene
from threestudio_rf.trainer.ramp import Value


def make_optimiser(
    scene: Scene,
    rates: Mapping[str, Value],
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-15,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """AdamW with the groups of the scene, without empty ones, at the rates of step 0. ValueError for a scene without
    parameters, for a group without a rate, and where the groups are not the scene's parameters, each once."""
    groups = {name: parameters for name, parameters in scene.groups().items() if parameters}
    if not groups:
        raise ValueError("the scene has no parameters, expected at least one")
    unknown = sorted(set(groups) - set(rates))
    if unknown:
        raise ValueError(f"groups of the scene: got {', '.join(unknown)}, expected some of {', '.join(rates)}")
    found, own = sorted(id(p) for p in chain.from_iterable(groups.values())), sorted(id(p) for p in scene.parameters())
    if found != own:
        raise ValueError(f"groups of the scene: got {len(found)} parameters, expected its {len(own)}, each once")
    named = [{"name": name, "params": parameters, "lr": rates[name](0)} for name, parameters in groups.items()]
    return torch.optim.AdamW(named, betas=betas, eps=eps, weight_decay=weight_decay)


def set_rates(optimiser: torch.optim.Optimizer, rates: Mapping[str, Value], step: int) -> None:
    """Give every group its learning rate of `step`."""
    for group in optimiser.param_groups:
        group["lr"] = rates[group["name"]](step)


def restore(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a stored state. Moments of a table that tinycudann kept flat, row by row, take the table's shape."""
    parameters = list(chain.from_iterable(group["params"] for group in optimiser.param_groups))
    kept = {index: dict(moments) for index, moments in state["state"].items()}
    for index, moments in kept.items():
        shape = parameters[index].shape
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.dim() == 1 and len(shape) == 2 and len(value) == shape.numel():
                moments[name] = value.view(shape[1], shape[0]).t()
    optimiser.load_state_dict(state | {"state": kept})


def gradient_norm(optimiser: torch.optim.Optimizer) -> torch.Tensor:
    """The norm of the whole gradient; not finite when any part is not."""
    parameters = chain.from_iterable(group["params"] for group in optimiser.param_groups)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
