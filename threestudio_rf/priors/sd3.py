"""Stable Diffusion 3 and 3.5, and every folder of their shape: u = eps - x0 on the straight path, label 1000 t.

Two phases. `embed` loads the text encoders alone, one after the other, and frees them; the network and the VAE load
on first use, or by `load()`. So embed every text of a run first. Latents are (z - shift) scale of the VAE's output z,
both from its config.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import Schedule, rectified_flow
from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.hub import Places, places
from threestudio_rf.priors.folder.layout import Shape, Table, present, read_index, vae_factor
from threestudio_rf.priors.folder.load import check_parts, usable_dtype
from threestudio_rf.priors.folder.parts import PLAIN, FolderParts, PartOptions, Parts
from threestudio_rf.priors.sampling.pipeline import Formula, Pipeline
from threestudio_rf.priors.sampling.scheduler import Scheduler
from threestudio_rf.priors.text import CLIPS, T5, SD3Text, excess

LICENCE = "Stability AI Community Licence (gated; see the model's page)"
MAX_SEQUENCE_LENGTH, LONGEST = 256, 4096
NEVER_FETCHED = ("feature_extractor", "image_encoder")
NETWORK = ("transformer", "SD3Transformer2DModel")
CLASSES = {encoder: "CLIPTextModelWithProjection" for _, encoder in CLIPS} | {T5[1]: "T5EncoderModel"}


class SD3Prior:
    """The adapter. `time_shift` is the shift of the folder's own sampler (3 for SD3), for whoever draws or spaces t."""

    kind: Kind = "flow"

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        text: SD3Text,
        *,
        cache: ConditionCache,
        name: str = "sd3",
        licence: str = LICENCE,
        pipeline: Scheduler | None = None,
    ) -> None:
        self.shape, self.parts, self.text, self.cache = shape, parts, text, cache
        self.name, self.licence = name, licence
        self.schedule: Schedule = rectified_flow
        self.latent_shape = (shape.channels, shape.size, shape.size)
        self.pipeline: Pipeline = Formula(rectified_flow) if pipeline is None else pipeline
        self.time_shift, self.trained = (3.0, 1000) if pipeline is None else (pipeline.time_shift, pipeline.trained)

    def load(self) -> None:
        """Load network and VAE now, with their checks, instead of on first use."""
        _ = self.parts.network, self.parts.vae

    def embed(self, prompts: list[str]) -> Condition:
        """`prompt` (N, T, D) and `pooled` (N, P); from the cache where it knows the text, each text embedded once."""
        return self.cache.embed(prompts, self.text.embed).to(self.text.device)

    @cached_property
    def _tokenizer(self) -> Any:
        return self.text.tokenizer(CLIPS[0][0])

    def fits(self, text: str) -> bool:
        """Whether CLIP's window holds the whole text (77 tokens for released weights)."""
        return not excess(text, self._tokenizer)

    def label(self, t: Tensor) -> Tensor:
        """What the network hears at t (B,): 1000 t, float32; num_train_timesteps t where the folder says another."""
        return (self.trained * t).to(torch.float32)

    def between(self) -> SD3Prior:
        """Itself: a flow has no table."""
        return self

    @property
    def network(self) -> Any:
        """The transformer, on the device."""
        return self.parts.network

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u, as `Prior.predict`; ValueError unless the latents' sides are multiples of the network's patch."""
        return self.answer(x_t, t, condition)

    def answer(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`predict` with a graph, for what learns inside the network."""
        self.shape.check_latents(x_t)
        condition.require(["prompt", "pooled"], len(x_t))
        device, dtype, tensors = self.text.device, self.text.dtype, condition.tensors
        u: Tensor = self.parts.network(
            hidden_states=x_t.to(device, dtype),
            timestep=self.label(t).to(device),
            encoder_hidden_states=tensors["prompt"].to(device, dtype),
            pooled_projections=tensors["pooled"].to(device, dtype),
            return_dict=False,
        )[0]
        return u.to(x_t.device, torch.float32)

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], not clamped -> (B, C, H/8, W/8), differentiable in `image`. The posterior's mode, or
        a sample of it with a generator. ValueError unless H and W are multiples of VAE's factor times patch (16)."""
        self.shape.check_image(image)
        return self.parts.encode(image, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W) in [0, 1]."""
        return self.parts.decode(latents)


def read_shape(at: Places) -> Shape:
    """What the configs of network and VAE say; PriorError for a missing entry, or a VAE of another shape."""
    network = Table(at.folder / "transformer/config.json")
    channels, size, patch = network.whole("in_channels"), network.side("sample_size"), network.whole("patch_size")
    return Shape(channels=channels, size=size, patch=patch, factor=vae_factor(at.vae, channels))


def check_folder(folder: Path, variant: str | None, *, t5: bool, vae: bool = True) -> None:
    """Look at every file SD3 needs without loading any weights. PriorError for what is missing or broken."""
    index = read_index(folder, "sd3")
    encoders = [encoder for _, encoder in CLIPS] + ([T5[1]] if t5 and present(index, T5[1]) else [])
    check_parts(folder, [NETWORK[0], *(["vae"] if vae else []), *encoders], dict([NETWORK]) | CLASSES, variant)


def load_sd3(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    t5: bool = True,
    max_sequence_length: int | None = None,
    cache: Path | None = None,
    name: str = "sd3",
    licence: str = LICENCE,
    options: PartOptions = PLAIN,
    offline: bool = False,
) -> SD3Prior:
    """SD3 from a local folder or owner/name; PriorError with a text for the user when it cannot be used.

    `t5` False leaves T5 out even where the folder has it. `max_sequence_length` counts T5's tokens, or the zeros in
    their place: by default `_max_sequence_length` of model_index.json, else 256 as released weights expect. `cache` is
    the folder of embedded texts, None keeps them in memory only. On a CPU float16 becomes float32. `offline`: nothing
    is downloaded.
    """
    device = torch.device(device)
    dtype = usable_dtype(dtype, device)
    options.check(device)

    at = _places(path, revision=revision, variant=variant, t5=t5, vae=options.vae, offline=offline)
    text = _text(at.folder, t5, max_sequence_length, dtype=dtype, device=device, variant=variant, options=options)
    model = f"{path} t5={text.t5} length={text.length}"
    shape = read_shape(at)
    scheduler = Table(at.folder / "scheduler/scheduler_config.json")
    return SD3Prior(
        shape,
        FolderParts(at, NETWORK, device=device, dtype=dtype, shifted=True, variant=variant, options=options),
        text,
        cache=ConditionCache(cache, model, f"{revision} {text.revision()}", str(dtype)),
        name=name,
        licence=licence,
        pipeline=Scheduler(scheduler, None, tokens=(shape.size // shape.patch) ** 2),
    )


def _text(
    folder: Path,
    t5: bool,
    length: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None,
    options: PartOptions,
) -> SD3Text:
    index = read_index(folder, "sd3")
    if length is None:
        table = Table(folder / "model_index.json")
        length = table.whole("_max_sequence_length", MAX_SEQUENCE_LENGTH, low=0, high=LONGEST)
    width = Table(folder / "transformer/config.json").whole("joint_attention_dim")
    return SD3Text(folder, width, length, t5 and present(index, T5[1]), dtype, device, variant, options.changes)


def _places(
    path: str | Path, *, revision: str | None, variant: str | None, t5: bool, vae: str, offline: bool
) -> Places:
    skipped = [*NEVER_FETCHED, *([] if t5 else T5), *(["vae"] if vae else [])]

    def fetch(repository: str, local_only: bool) -> Path:
        from diffusers import StableDiffusion3Pipeline

        folder = StableDiffusion3Pipeline.download(
            repository,
            revision=revision,
            variant=variant,
            local_files_only=local_only,
            use_safetensors=True,
            **dict.fromkeys(skipped),
        )
        return Path(folder)

    def complete(folder: Path) -> None:
        check_folder(folder, variant, t5=t5, vae=not vae)

    return places(path, fetch, complete, tiny_vae=vae, offline=offline)
