"""The twin of VSD (ProlificDreamer, arXiv 2305.16213): a LoRA over a prior's own network that learns what the scene
shows, in the prior's own parametrization.

The frozen weights are shared: adapters of peft lie in the network and are switched on while the twin is asked, so the
prior answers as before, to the last bit. A camera moves every tensor of the condition by a learned bias. Adapters and
bias start at zero, so a fresh twin is the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.convert import join, noise, split
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import Part, normal, uniform
from threestudio_rf.priors.base import Condition, Prior, PriorError

NAME = "twin"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The layers with adapters: all projections of attention, of a UNet and of an MMDiT."""
LEARNING_CALLS = 2
"""A training step counts as two network calls: forward, and backward through frozen weights, which costs as much."""
POSE = 12
CLEANEST = 1e-3


class Adaptable(Prior, Protocol):
    """A prior whose network can carry adapters."""

    @property
    def network(self) -> Any:
        """The denoiser, on the device."""
        ...

    def answer(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`predict` with a graph."""
        ...


def _adaptable(prior: Prior) -> TypeGuard[Adaptable]:
    return isinstance(getattr(prior, "network", None), nn.Module)


class PoseBias(nn.Module):
    """(B, 12) of a camera -> a bias for every tensor (B, ..., D) of a condition, zero at first."""

    def __init__(self, like: Condition, width: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(POSE, width)
        outs = {name: nn.Linear(width, x.shape[-1]) for name, x in like.tensors.items()}
        for out in outs.values():
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
        self.outs = nn.ModuleDict(outs)

    def forward(self, condition: Condition, pose: Tensor) -> Condition:
        hidden = nn.functional.silu(self.hidden(pose))
        moved = {}
        for name, x in condition.tensors.items():
            bias = self.outs[name](hidden)
            moved[name] = x + bias.reshape(len(bias), *[1] * (x.ndim - 2), -1)
        return Condition(moved)


Average = Callable[[Sequence[nn.Parameter], Mapping[str, Tensor]], dict[str, float]]
"""Takes gradients and figures to their means over several processes."""


class Twin:
    """The adapters, the bias and their optimiser. `like` is any condition of the prior, for its shapes; `posed`: the
    twin sees cameras. PriorError for a prior without a network that can carry adapters."""

    def __init__(
        self, prior: Prior, like: Condition, *, rank: int = 4, rate: float = 1e-4, posed: bool = True, seed: int = 0
    ) -> None:
        if not _adaptable(prior):
            raise PriorError(f"prior {prior.name} has no network that a twin could learn on")
        self.prior, self.posed, self.lora = prior, posed, _add_adapters(prior.network, rank, seed)
        device = next(prior.network.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bias = PoseBias(like).to(device)
        parameters = [*self.lora.values(), *(self.bias.parameters() if posed else [])]
        self.optimiser = torch.optim.AdamW(parameters, lr=rate)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The network answers as the twin."""
        self.prior.network.enable_adapters()
        try:
            yield
        finally:
            self.prior.network.disable_adapters()

    def _answer(self, x_t: Tensor, t: Tensor, condition: Condition, pose: Tensor | None) -> Tensor:
        given = condition.expand(len(x_t))
        if self.posed and pose is not None:
            given = self.bias(given, pose.to(next(self.bias.parameters())))
        return self.prior.answer(x_t, t, given)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition, *, pose: Tensor | None = None) -> Tensor:
        """What the twin predicts at x_t (B, C, h, w) and t (B,), of the prior's kind; `pose` (B, 12) or None."""
        with self.awake():
            return self._answer(x_t, t, condition, pose)

    def learn(
        self,
        latents: Tensor,
        condition: Condition,
        *,
        pose: Tensor | None = None,
        generator: Generator | Part,
        average: Average | None = None,
    ) -> float:
        """One training step on clean `latents` (B, C, h, w) at fresh times and noise; its mean squared error.

        t is uniform in 0.001..1. A loss that is not finite leaves the twin as it is. With `average` these are a part of
        the batch: it takes the gradients of the parameters to their mean over all parts, and returns that of the loss.
        """
        x0 = latents.detach().float()
        t = CLEANEST + (1 - CLEANEST) * uniform((len(x0),), generator, device=x0.device)
        eps, level = normal(x0.shape, generator, device=x0.device), self.prior.schedule(t)
        wanted = join(self.prior.kind, x0, eps, level)
        return self._step(noise(x0, eps, level), t, wanted, condition, pose, average)

    def follow(
        self,
        x_t: Tensor,
        t: Tensor,
        eps: Tensor,
        condition: Condition,
        *,
        pose: Tensor | None = None,
        average: Average | None = None,
    ) -> float:
        """As `learn`, on given x_t (B, C, h, w) and t (B,): the twin's eps_hat there is to be `eps` (TraCe)."""
        x_t, level = x_t.detach().float(), self.prior.schedule(t)
        wanted = join(self.prior.kind, *split("eps", eps.detach().float(), x_t, level), level)
        return self._step(x_t, t, wanted, condition, pose, average)

    def _step(
        self,
        x_t: Tensor,
        t: Tensor,
        wanted: Tensor,
        condition: Condition,
        pose: Tensor | None,
        average: Average | None,
    ) -> float:
        with self.awake(), torch.enable_grad():
            loss = (self._answer(x_t, t, condition, pose) - wanted).square().mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        value = loss.item() if average is None else average(parameters, {"loss": loss.detach()})["loss"]
        if math.isfinite(value):
            self.optimiser.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        """Adapters, bias and optimiser."""
        lora = {name: x.detach() for name, x in self.lora.items()}
        return {"lora": lora, "bias": self.bias.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` returned; ValueError for adapters of another network or rank."""
        found = {name: x.shape for name, x in state["lora"].items()}
        if found != {name: x.shape for name, x in self.lora.items()}:
            raise ValueError("twin: got the adapters of another network or rank, expected those of this one")
        with torch.no_grad():
            for name, x in self.lora.items():
                x.copy_(state["lora"][name])
        self.bias.load_state_dict(state["bias"])
        self.optimiser.load_state_dict(state["optimiser"])


def with_twin(model: Model, twin: Twin, condition: Condition, pose: Tensor | None) -> Model:
    """`model` where the twin answers the role "twin", asked with `condition` and the camera's `pose` (B, 12)."""

    def predict(x_t: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        if NAME not in roles:
            return model(x_t, t, roles)
        others = [role for role in roles if role != NAME]
        found = model(x_t, t, others) if others else {}
        return found | {NAME: twin.predict(x_t, t, condition, pose=pose)}

    return Model(predict, model.kind, model.schedule)


def _add_adapters(network: Any, rank: int, seed: int) -> dict[str, nn.Parameter]:
    """Switched-off adapters in float32, drawn from `seed`; the only parameters of the network that learn."""
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ATTENTION), init_lora_weights="gaussian")
        network.add_adapter(config, adapter_name=NAME)
    found = {name: p for name, p in network.named_parameters() if "lora_" in name and f".{NAME}." in name}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    network.disable_adapters()
    return found
