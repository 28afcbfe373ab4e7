"""Phase 2 of a diffusers folder, the same for every adapter: network and VAE, how they are kept, encoding, decoding.

Only `storage` and `quantization` (rounding) and `vae` (another autoencoder) change what is computed; the other options
trade time for memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from threestudio_rf.core.collector import uncollected
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.changes import UNCHANGED, Changes
from threestudio_rf.priors.folder.hub import Places
from threestudio_rf.priors.folder.layout import VAES, class_of
from threestudio_rf.priors.folder.load import load_part
from threestudio_rf.priors.folder.vaes import CODECS, PIXELS, Scale

STORAGES = ("none", "fp8")
QUANTIZATIONS = {"none": "", "int8": "torchao>=0.15", "nf4": "bitsandbytes>=0.43.3"}
"""How weights are quantised, and what must be installed for it."""
FP8_LARGEST = 448.0


@dataclass(frozen=True)
class PartOptions:
    """How network and VAE are kept.

    `vae`: folder or owner/name of an AutoencoderTiny (TAESD, TAESD3) instead of the folder's own, "" for that one.
    `vae_checkpointing`: its encoder forgets what backward needs and computes it again. `storage`: the network's weights
    rest in float8 and are cast layer by layer. `quantization`: its linear layers in int8 or 4-bit NormalFloat.
    `offload`: of network and VAE only the one in use is on the device, the other rests on the CPU. `offload_blocks`:
    the network rests on the CPU, and so many of its blocks at a time are on the device; 0 for all of them. `compile`:
    the network and the VAE's encoder run through torch.compile, once for every shape. `changes`: LoRAs and a difference
    of weights, merged as parts load.

    PriorError for an unknown name and for combinations that no library supports.
    """

    vae: str = ""
    vae_checkpointing: bool = False
    storage: str = "none"
    quantization: str = "none"
    offload: bool = False
    offload_blocks: int = 0
    compile: bool = False
    changes: Changes = UNCHANGED

    def __post_init__(self) -> None:
        got = (self.storage, self.quantization)
        if self.storage not in STORAGES or self.quantization not in QUANTIZATIONS:
            raise PriorError(f"storage, quantization: got {got}, expected one of {STORAGES}, {(*QUANTIZATIONS,)}")
        if "none" not in got:
            raise PriorError(f"storage, quantization: got {got}, expected only one of them")
        if self.quantization != "none" and self.changes:
            raise PriorError(
                f"quantization, lora, delta: got {self.quantization} with changed weights, expected no quantization"
            )
        if self.compile and self.offload_blocks:
            raise PriorError("compile, offload_blocks: got both, expected only one, as blocks come and go by hooks")
        if self.quantization == "nf4" and (self.offload or self.offload_blocks):
            raise PriorError("quantization, offload: got nf4 and some, expected no offload, as nf4 stays on the GPU")

    def check(self, device: torch.device) -> None:
        """PriorError, before anything is loaded, for a quantisation that this machine cannot do."""
        if self.quantization == "nf4" and device.type != "cuda":
            raise PriorError(f"prior.quantization=nf4 needs a CUDA device, got {device}; use int8, or storage=fp8")
        wanted = QUANTIZATIONS[self.quantization]
        name = wanted.partition(">")[0]
        if name and find_spec(name) is None:
            raise PriorError(f'prior.quantization={self.quantization} needs {name}: pip install "{wanted}"')


PLAIN = PartOptions()


class Parts(Protocol):
    """Phase 2 as an adapter sees it: images are (B, 3, H, W) in [0, 1], latents as the network reads them."""

    @property
    def network(self) -> Any:
        """The denoiser, on the device."""
        ...

    @property
    def vae(self) -> Any:
        """The autoencoder, on the device."""
        ...

    def encode(self, image: Tensor, generator: Generator | None) -> Tensor:
        """Pictures -> latents: the posterior's mode, or a sample where a generator is given."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures."""
        ...


class FolderParts:
    """Network and VAE, loaded and checked when first asked for.

    `network_at` is (subfolder, class of diffusers); `shifted`: latents are (z - shift_factor) scaling_factor of the
    VAE's output z, else z scaling_factor, both from its config. `pixels`: there is no VAE, latents are the picture
    itself in [-1, 1]. The VAE computes in float32 where the network is in float16: its gradients of order 1/M would be
    subnormal there.
    """

    def __init__(
        self,
        places: Places,
        network_at: tuple[str, str],
        *,
        device: torch.device,
        dtype: torch.dtype,
        shifted: bool,
        pixels: bool = False,
        variant: str | None = None,
        options: PartOptions = PLAIN,
    ) -> None:
        options.changes.check(places.folder)
        self.places, self.network_at = places, network_at
        self.device, self.dtype, self.shifted, self.variant = device, dtype, shifted, variant
        self.vae_dtype = torch.float32 if pixels or dtype == torch.float16 else dtype
        self.options, self.pixels = options, pixels
        self.vae_class = "" if pixels else class_of(places.vae) or VAES[0]
        self.codec = PIXELS if pixels else CODECS[self.vae_class]
        self.loaded: dict[str, Any] = {}
        self._present: set[str] = set()

    @property
    def network(self) -> Any:
        """The network, on the device."""
        return self.on_device("network")

    @property
    def vae(self) -> Any:
        """The VAE, on the device."""
        return self.on_device("vae")

    def on_device(self, name: str) -> Any:
        """The part "network" or "vae" on the device. With `offload` it stays there until the other one is asked for."""
        if name not in self._present:
            if self.options.offload:
                for other in self._present:
                    self._move(other, "cpu")
                self._present.clear()
            if name not in self.loaded:
                self.loaded[name] = self._load_network() if name == "network" else self._load_vae()
            self._move(name, self.device)
            self._present.add(name)
        return self.loaded[name]

    def _move(self, name: str, device: torch.device | str) -> None:
        """The whole part; a network that comes in blocks stays where they are."""
        if name == "vae" or not self.options.offload_blocks:
            self.loaded[name].to(device)

    @uncollected()
    def _load_network(self) -> Any:
        import diffusers

        subfolder, cls = self.network_at
        network = load_network(
            getattr(diffusers, cls),
            self.places.folder / subfolder,
            dtype=self.dtype,
            variant=self.variant,
            options=self.options,
        )
        if blocks := self.options.offload_blocks:
            network.enable_group_offload(self.device, offload_type="block_level", num_blocks_per_group=blocks)
        if self.options.compile:
            network.compile(dynamic=False)
        return network

    @uncollected()
    def _load_vae(self) -> Any:
        import diffusers

        if self.pixels:
            return nn.Identity()
        cls = getattr(diffusers, self.vae_class)
        vae = load_part(cls, self.places.vae, dtype=self.vae_dtype, variant=self.variant)
        if self.options.vae_checkpointing:
            self.codec.recompute(vae)
        if self.options.compile:
            vae.encoder.compile(dynamic=False)
        # convolutions of a GPU are made for this order; on a CPU it gains nothing
        return vae.to(memory_format=torch.channels_last) if self.device.type == "cuda" else vae

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], not clamped -> latents in float32, differentiable in `image`. The posterior's mode,
        or a sample of it with a generator; an AutoencoderTiny has no posterior."""
        self.on_device("vae")
        x = 2 * image.to(self.device, self.vae_dtype) - 1
        # with `offload` the VAE may be away when backward needs it: computing again brings it back
        twice = self.options.offload and torch.is_grad_enabled() and x.requires_grad
        out = checkpoint(self._encoded, x, use_reentrant=False) if twice else self._encoded(x)
        z = self.codec.drawn(out, generator)
        scale, shift = self._scale()
        return ((z.float() - shift) * scale).to(image.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W) in [0, 1]."""
        vae = self.vae
        scale, shift = self._scale()
        z = latents.to(self.device, torch.float32) / scale + shift
        image: Tensor = self.codec.decoded(vae, z.to(self.vae_dtype)).float()
        return (image / 2 + 0.5).clamp(0, 1).to(latents.device)

    def _encoded(self, x: Tensor) -> Tensor:
        return self.codec.said(self.vae, x)

    def _scale(self) -> Scale:
        scale, shift = (
            x.to(self.device) if isinstance(x, Tensor) else x for x in self.codec.factors(self.loaded["vae"])
        )
        return scale, shift if self.shifted else 0.0


def load_network(
    cls: Any, folder: Path, *, dtype: torch.dtype, variant: str | None = None, options: PartOptions = PLAIN
) -> Any:
    """The network of a folder, quantised or stored as `options` say; PriorError as `load_part`, and for weights beyond
    the range of float8. Its weights are changed as they ask, before they are rounded."""
    network = load_part(cls, folder, dtype=dtype, variant=variant, quantization=quantization(options, dtype))
    options.changes.apply(network, folder)
    if options.storage == "fp8":
        large = [name for name, weight in network.named_parameters() if weight.abs().max() > FP8_LARGEST]
        if large:
            raise PriorError(f"{folder}: storage=fp8 holds numbers up to {FP8_LARGEST:g}, {large[0]} has larger ones")
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    return network


def quantization(options: PartOptions, dtype: torch.dtype) -> Any:
    """The configuration of diffusers for `options.quantization`, None for none."""
    if options.quantization == "int8":
        from diffusers import TorchAoConfig
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if options.quantization == "nf4":
        from diffusers import BitsAndBytesConfig

        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None
