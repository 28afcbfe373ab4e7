"""PRXPixel (PRXPixelPipeline): no VAE, its latents are the picture in [-1, 1]; its network predicts x0, is told t.

Its noise has deviation 2: x_t = (1 - t) x0 + 2 t eps. Its pipeline walks along (x_t - x0) / max(t, 0.05); the flow
eps - x0 that is returned is the one on which the same steps are taken, so that nothing is undefined at t = 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio_rf.core.level import Continuous, Level, column
from threestudio_rf.priors.adapters.base import Adapter
from threestudio_rf.priors.adapters.prx import ask
from threestudio_rf.priors.adapters.text import Row, TextSide, unrepaired
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import Shape, Table

SIZE, DEVIATION, CLEANEST, TOKENS = 1024, 2.0, 0.05, 256


def shape(at: Places) -> Shape:
    """Its pictures; PriorError for a network that was trained with noise of another deviation."""
    network, index = Table(at.folder / "transformer/config.json"), Table(at.folder / "model_index.json")
    if index.real("noise_scale", DEVIATION) != DEVIATION:
        raise index.refuse("noise_scale", f"{DEVIATION:g}, the deviation of its noise")
    size = index.whole("default_sample_size", SIZE)
    return Shape(network.whole("in_channels"), size, network.whole("patch_size"), 1)


def embed(pipe: Any, text: str, device: torch.device) -> Row:
    """`prompt` (256, D) and `mask` (256)."""
    unrepaired(pipe)
    prompt, mask, _, _ = pipe.encode_prompt(text, device, do_classifier_free_guidance=False)
    return {"prompt": prompt[0], "mask": mask[0].bool()}


def read(x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """eps - x0 of the pipeline's step: v = (x_t - x0) / max(t, 0.05) ends at x_t - t v, with noise v + that."""
    v = (x_t - x0) / column(t.clamp(min=CLEANEST), x_t)
    end = x_t - column(t, x_t) * v
    return (v + end) / DEVIATION - end


ADAPTER = Adapter(
    name="prx_pixel",
    pipeline="PRXPixelPipeline",
    network=("transformer", "PRXTransformer2DModel"),
    text=TextSide({"text_encoder": "Qwen3VLTextModel"}, embed, window=TOKENS, limit="prompt_max_tokens"),
    vaes=(),
    licence="Apache-2.0 (PRXPixel)",
    shape=shape,
    ask=ask,
    label="t",
    path=Continuous(lambda t: Level(1 - t, DEVIATION * t)),
    read=read,
    start=DEVIATION,
)
