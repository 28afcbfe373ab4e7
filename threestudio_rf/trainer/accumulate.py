"""Gradients of several steps as one step of the optimiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threestudio_rf.trainer.optim import gradient_norm


class Accumulated:
    """The sum of the gradients that were added since the last step of the optimiser."""

    def __init__(self, optimiser: torch.optim.Optimizer, *, clip: float = 0.0) -> None:
        self.optimiser, self.clip = optimiser, clip
        self.sums: list[Tensor | None] = []
        self.count = 0

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is optimised."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    def clear(self) -> None:
        """Take the gradients from the parameters, without the profiler's hooks of `zero_grad`."""
        for parameter in self.parameters:
            parameter.grad = None

    def add(self) -> None:
        """Take the gradients that the parameters hold now."""
        grads = [p.grad for p in self.parameters]
        kept = self.sums if self.count else [None] * len(grads)
        self.sums = [b if a is None else a if b is None else a + b for a, b in zip(kept, grads, strict=True)]
        self.count += 1

    def step(self) -> bool:
        """One step by the mean of what was added, its norm limited to `clip` (0: no limit); none, and False, when
        nothing was."""
        if not self.count:
            return False
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            parameter.grad = total if total is None or self.count == 1 else total / self.count
        if self.clip:
            norm = gradient_norm(self.optimiser)
            if norm > self.clip:
                nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimiser.step()
        self.sums, self.count = [], 0
        return True
