"""Stable Diffusion 3 and 3.5, and every folder of their shape: u = eps - x0 on the straight path, label 1000 t.

Two phases. `embed` loads the text encoders alone, one after the other, and frees them; the network and the VAE load
on first use, or by `load()`. So embed every text of a run first. Latents are (z - shift) scale of the VAE's output z,
both from its config.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import Schedule, rectified_flow
from threestudio_rf.priors.base import Condition, PriorError
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder import load_part, present, read_index, read_json, weight_files
from threestudio_rf.priors.hub import locate
from threestudio_rf.priors.sd3_text import CLIPS, T5, SD3Text

LICENCE = "Stability AI Community Licence (gated; see the model's page)"
MAX_SEQUENCE_LENGTH = 256


@dataclass(frozen=True)
class SD3Shape:
    """What the configs say: latent (C, size, size), the network's patch and VAE's factor, latent scale and shift."""

    channels: int
    size: int
    patch: int
    factor: int
    scale: float
    shift: float

    @staticmethod
    def read(folder: Path) -> SD3Shape:
        network, vae = read_json(folder / "transformer/config.json"), read_json(folder / "vae/config.json")
        try:
            return SD3Shape(
                channels=network["in_channels"],
                size=network["sample_size"],
                patch=network["patch_size"],
                factor=2 ** (len(vae["block_out_channels"]) - 1),
                scale=vae["scaling_factor"],
                shift=vae.get("shift_factor") or 0.0,
            )
        except KeyError as error:
            raise PriorError(f"{folder}: config.json of transformer or vae has no {error}") from None


class Parts(Protocol):
    """The two modules of phase 2, loaded when first asked for."""

    @property
    def network(self) -> Any: ...
    @property
    def vae(self) -> Any: ...


class FolderParts:
    """Network and VAE of a folder. The VAE computes in float32 where the network is in float16: its gradients of
    order 1/M would be subnormal there."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, variant: str | None) -> None:
        self.folder, self.device, self.dtype, self.variant = folder, device, dtype, variant

    @cached_property
    def network(self) -> Any:
        from diffusers import SD3Transformer2DModel

        part = load_part(SD3Transformer2DModel, self.folder / "transformer", dtype=self.dtype, variant=self.variant)
        return part.to(self.device)

    @cached_property
    def vae(self) -> Any:
        from diffusers import AutoencoderKL

        dtype = torch.float32 if self.dtype == torch.float16 else self.dtype
        return load_part(AutoencoderKL, self.folder / "vae", dtype=dtype, variant=self.variant).to(self.device)


class SD3Prior:
    """The adapter. `time_shift` is the shift of the folder's own sampler (3 for SD3), for whoever draws or spaces t."""

    kind: Kind = "flow"

    def __init__(
        self,
        shape: SD3Shape,
        parts: Parts,
        text: SD3Text,
        *,
        cache: ConditionCache,
        name: str = "sd3",
        licence: str = LICENCE,
        time_shift: float = 3.0,
    ) -> None:
        self.shape, self.parts, self.text, self.cache = shape, parts, text, cache
        self.name, self.licence, self.time_shift = name, licence, time_shift
        self.schedule: Schedule = rectified_flow
        self.latent_shape = (shape.channels, shape.size, shape.size)

    def load(self) -> None:
        """Load network and VAE now, with their checks, instead of on first use."""
        _ = self.parts.network, self.parts.vae

    def embed(self, prompts: list[str]) -> Condition:
        """`prompt` (N, T, D) and `pooled` (N, P); from the cache where it knows the text, each text embedded once."""
        new = [text for text in dict.fromkeys(prompts) if self.cache.get(text) is None]
        if new:
            for text, tensors in zip(new, self.text.embed(new), strict=True):
                self.cache.put(text, tensors)
        return self.cache.condition(prompts).to(self.text.device)

    @cached_property
    def _tokenizer(self) -> Any:
        return self.text.tokenizer(CLIPS[0][0])

    def fits(self, text: str) -> bool:
        """Whether CLIP's window holds the whole text (77 tokens for released weights)."""
        return not self.text.excess(text, self._tokenizer)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        device, dtype, tensors = self.text.device, self.text.dtype, condition.tensors
        height, width = x_t.shape[-2:]
        if (
            x_t.ndim != 4
            or x_t.shape[1] != self.shape.channels
            or height % self.shape.patch
            or width % self.shape.patch
        ):
            expected = f"(B, {self.shape.channels}, h, w) with h, w multiples of {self.shape.patch}"
            raise ValueError(f"latents: got {tuple(x_t.shape)}, expected {expected}")
        u = self.parts.network(
            hidden_states=x_t.to(device, dtype),
            timestep=(1000 * t).to(device, torch.float32),
            encoder_hidden_states=tensors["prompt"].to(device, dtype),
            pooled_projections=tensors["pooled"].to(device, dtype),
            return_dict=False,
        )[0]
        return u.to(x_t.device, torch.float32)

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], not clamped -> (B, C, H/8, W/8), differentiable in `image`. The posterior's mode, or
        a sample of it with a generator. ValueError unless H and W are multiples of VAE's factor times patch (16)."""
        self._check("image", image, 3, self.shape.factor * self.shape.patch)
        vae = self.parts.vae
        posterior = vae.encode(2 * image.to(self.text.device, vae.dtype) - 1).latent_dist
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return ((z.float() - self.shape.shift) * self.shape.scale).to(image.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.parts.vae
        z = latents.to(self.text.device, torch.float32) / self.shape.scale + self.shape.shift
        image = vae.decode(z.to(vae.dtype)).sample.float()
        return (image / 2 + 0.5).clamp(0, 1).to(latents.device)

    @staticmethod
    def _check(name: str, x: Tensor, channels: int, multiple: int) -> None:
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % multiple or x.shape[3] % multiple:
            expected = f"(B, {channels}, H, W) with H, W multiples of {multiple}"
            raise ValueError(f"{name}: got {tuple(x.shape)}, expected {expected}")


def check_folder(folder: Path, variant: str | None, t5: bool) -> None:
    """Look at every file SD3 needs without loading any weights. PriorError for what is missing or broken."""
    index = read_index(folder, "sd3")
    for name in [
        "transformer",
        "vae",
        *(encoder for _, encoder in CLIPS),
        *([T5[1]] if t5 and present(index, T5[1]) else []),
    ]:
        weight_files(folder / name, variant)
        read_json(folder / name / "config.json")


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
) -> SD3Prior:
    """SD3 from a local folder or owner/name; PriorError with a text for the user when it cannot be used.

    `t5` False leaves T5 out even where the folder has it. `max_sequence_length` counts T5's tokens, or the zeros in
    their place: by default `_max_sequence_length` of model_index.json, else 256 as released weights expect. `cache` is
    the folder of embedded texts, None keeps them in memory only. On a CPU float16 becomes float32.
    """
    device = torch.device(device)
    if device.type == "cpu" and dtype == torch.float16:
        warnings.warn("float16 is slower than float32 on a CPU; float32 is used (bfloat16 on request)", stacklevel=2)
        dtype = torch.float32

    def fetch(repository: str, local_only: bool) -> Path:
        return _fetch(repository, local_only, revision=revision, variant=variant, t5=t5)

    folder = locate(str(path), fetch, lambda found: check_folder(found, variant, t5))
    text = _text(folder, t5, max_sequence_length, dtype, device, variant)
    model = f"{path} t5={text.t5} length={text.length}"
    return SD3Prior(
        SD3Shape.read(folder),
        FolderParts(folder, device, dtype, variant),
        text,
        cache=ConditionCache(cache, model, f"{revision} {text.revision()}", str(dtype)),
        name=name,
        licence=licence,
        time_shift=float(read_json(folder / "scheduler/scheduler_config.json").get("shift", 1.0)),
    )


def _text(
    folder: Path, t5: bool, length: int | None, dtype: torch.dtype, device: torch.device, variant: str | None
) -> SD3Text:
    index = read_index(folder, "sd3")
    if length is None:
        length = index.get("_max_sequence_length", MAX_SEQUENCE_LENGTH)
    width = read_json(folder / "transformer/config.json")["joint_attention_dim"]
    return SD3Text(folder, width, length, t5 and present(index, T5[1]), dtype, device, variant)


def _fetch(repository: str, local_only: bool, *, revision: str | None, variant: str | None, t5: bool) -> Path:
    from diffusers import StableDiffusion3Pipeline

    skipped = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    return Path(
        StableDiffusion3Pipeline.download(
            repository,
            revision=revision,
            variant=variant,
            local_files_only=local_only,
            use_safetensors=True,
            **skipped,
        )
    )
