"""Combiners: residual = sum_i weights_i p_i - target p(x0, eps), the weights by role.

| role             | prediction with                                     |
|------------------|-----------------------------------------------------|
| cond             | the prompt                                          |
| uncond           | no prompt, or the negative prompt where "neg" is no role |
| neg              | the negative prompt                                 |
| target, artifact | the prompt with what is wanted, with what goes wrong |
| twin             | the network that learns the scene (`priors/twin.py`) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from threestudio_rf.core.guide import cfg

Weights = Mapping[str, float | Tensor]
"""Per role a number or (B,)."""
Scale = float | Tensor
"""A guidance scale, or one per sample (B,)."""


@dataclass(frozen=True)
class Combiner:
    """`roles` are all it may ask for, `mix(scale, t (B,), progress)` their weights, where progress goes from 0 to 1
    over a run. `target` is m: 1 where the weights sum to 1, 0 where the residual is a difference of predictions, -1
    where it is eps less a prediction. `guided`: the scale is that of classifier-free guidance, 1 for none. A twin
    learns the latents under fresh noise, or x_t and eps `along` the step."""

    roles: tuple[str, ...]
    mix: Callable[[Scale, Tensor, float], Weights]
    target: float = 0.0
    guided: bool = False
    along: bool = False


def _cfg(scale: Scale, t: Tensor, progress: float) -> Weights:
    """Classifier-free guidance."""
    return cfg(scale)


def _csd(scale: Scale, t: Tensor, progress: float) -> Weights:
    """CSD (arXiv 2310.19415): the classifier's part of SDS alone, s (cond - uncond)."""
    return {"cond": scale, "uncond": -scale}


def _csd_negative(scale: Scale, t: Tensor, progress: float) -> Weights:
    """CSD with its second term, which pushes off the negative prompt less and less: + w (uncond - neg), w falling
    linearly from s to 0."""
    push = scale * (1 - progress)
    return {"cond": scale, "uncond": push - scale, **({"neg": -push} if push else {})}


FAR = 0.2005
"""Where NFSD's domain part changes: its code asks whether the entry of a table of 1000, which is `round(1000 t) - 1`,
is below 200."""


def _nfsd(scale: Scale, t: Tensor, progress: float) -> Weights:
    """NFSD (arXiv 2310.17590): s (cond - uncond) + the domain's part, uncond below `FAR`, else uncond - neg."""
    far = (t >= FAR).to(t)
    return {"cond": scale, "uncond": 1 - scale, **({"neg": -far} if bool(far.any()) else {})}


def _bridge(scale: Scale, t: Tensor, progress: float) -> Weights:
    """SDS-Bridge (arXiv 2406.09417), its second stage: s (target - artifact)."""
    return {"target": scale, "artifact": -scale}


def _vsd(scale: Scale, t: Tensor, progress: float) -> Weights:
    """VSD (ProlificDreamer, arXiv 2305.16213): guidance minus the twin."""
    return {**cfg(scale), "twin": -1.0}


def _trace(scale: Scale, t: Tensor, progress: float) -> Weights:
    """TraCe (arXiv 2511.05609): eps minus the twin; "cond" and "uncond" are asked by its noise alone."""
    return {"twin": -1.0}


COMBINERS: dict[str, Combiner] = {
    "cfg": Combiner(("cond", "uncond"), _cfg, target=1.0, guided=True),
    "csd": Combiner(("cond", "uncond"), _csd),
    "csd_negative": Combiner(("cond", "uncond", "neg"), _csd_negative),
    "nfsd": Combiner(("cond", "uncond", "neg"), _nfsd, guided=True),
    "bridge": Combiner(("target", "artifact"), _bridge),
    "vsd": Combiner(("cond", "uncond", "twin"), _vsd, guided=True),
    "trace": Combiner(("cond", "uncond", "twin"), _trace, target=-1.0, along=True),
}
