"""What is known of each prior before its weights are opened. The module imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

STORED = ("dtype", "vae", "vae_checkpointing", "storage", "quantization", "offload", "offload_blocks", "compile")
"""Settings of how network and VAE are kept."""
CHANGED = ("lora", "delta", "delta_from", "delta_scale")
"""Settings of what changes its weights."""
HUB = ("path", "revision", "variant", "offline", *STORED, *CHANGED)


class Billions(NamedTuple):
    """Parameters as released, in billions, of the smallest where there are several sizes: of the network, of the text
    encoders that are in memory together, of the VAE, of the text encoders without T5 where it can be left out; 0 where
    there is none or it is not known. The classes on torch's meta device were counted."""

    network: float
    texts: float
    vae: float = 0.084
    without_t5: float = 0.0


NOTHING = Billions(0, 0, 0)


@dataclass(frozen=True)
class Facts:
    """A prior by its name on the command line.

    adapter   which code opens it
    source    its weights are embedded in the package, or a folder or repository of the hub; a formula has none
    levels    its noise levels: a table of 1000 (VP), or the straight path of a flow
    multiple  the sides of its pictures are multiples of so many pixels: the VAE's factor times the network's own (SD's
              UNet halves latents thrice, SD3's patches are 2); 0: of its own size
    size      height and width of a formula's pictures unless others are asked for; 0: as its folder says
    kinds     what its network may be said to predict; one: what it predicts, none: there is nothing to say
    labels    its network is told the time as an integer label
    views     how it may be asked for a view; an embedded one by octant only where its words have them
    world     its prompts have a truth in the tiny world
    reads     settings of its own: of where the weights are, how they are kept, of the adapter
    network   the class of diffusers whose weights it reads, "" for none; of several priors with one network
    pipelines the classes of diffusers that use it in this prior's way, () for any
    billions  how large its weights are, of a prior of the hub
    encoder   numbers that its VAE's encoder keeps per pixel for its gradient: with its blocks computed again, and what
              comes on top without. SD's by arithmetic, 14 maps of 128 channels at the full size; 12 of 256 at a quarter
              of the pixels, 12 of 512 at a sixteenth, 20 of 512 at a 64th. Sana's as measured at 512 pixels
              (docs/benchmarks.md), Qwen-Image's unknown: 0
    """

    adapter: str
    source: Literal["embedded", "hub", "formula"]
    levels: Literal["table", "straight"]
    multiple: int = 16
    size: int = 0
    kinds: tuple[str, ...] = ()
    labels: bool = False
    views: tuple[str, ...] = ("four",)
    world: bool = False
    reads: tuple[str, ...] = ()
    network: str = ""
    pipelines: tuple[str, ...] = ()
    billions: Billions = NOTHING
    encoder: tuple[int, int] = (1792, 1312)


_SIZED = ("size", *HUB)
_OWN_VAE = tuple(key for key in _SIZED if key != "vae")
"""Of priors whose VAE has no tiny stand-in."""
_SANA = ("SanaPipeline", "SanaSprintPipeline")
_WORDS = ("four", "octants")
FACTS: dict[str, Facts] = {
    "tiny_sd3": Facts("tiny", "embedded", "straight", views=_WORDS, world=True, reads=STORED),
    "tiny_sd": Facts("tiny", "embedded", "table", labels=True, views=_WORDS, world=True, reads=STORED),
    "tiny_sd_v": Facts("tiny", "embedded", "table", labels=True, views=_WORDS, world=True, reads=STORED),
    "tiny_instaflow": Facts(
        "tiny",
        "embedded",
        "straight",
        kinds=("flow",),
        labels=True,
        views=_WORDS,
        world=True,
        reads=("kind", "mirror_time", *STORED),
    ),
    "tiny_exact": Facts(
        "exact",
        "formula",
        "straight",
        multiple=1,
        size=64,
        views=("four", "octants", "camera"),
        world=True,
        reads=("size", "bank_views", "bank_std"),
    ),
    "sd3": Facts(
        "sd3",
        "hub",
        "straight",
        reads=("t5", "max_sequence_length", *HUB),
        network="SD3Transformer2DModel",
        billions=Billions(2.03, 4.762, without_t5=0.695),
    ),
    "sd": Facts(
        "sd",
        "hub",
        "table",
        multiple=64,
        kinds=("eps", "v", "flow"),
        labels=True,
        reads=("kind", "mirror_time", *HUB),
        network="UNet2DConditionModel",
        billions=Billions(0.86, 0.123),
    ),
    "instaflow": Facts(
        "sd",
        "hub",
        "straight",
        multiple=64,
        kinds=("flow",),
        labels=True,
        reads=("kind", "mirror_time", *HUB),
        billions=Billions(0.86, 0.123),
    ),
    "sdxl": Facts(
        "sdxl",
        "hub",
        "table",
        multiple=32,
        reads=_SIZED,
        network="UNet2DConditionModel",
        billions=Billions(2.57, 0.818),
    ),
    "sana": Facts(
        "sana",
        "hub",
        "straight",
        multiple=32,
        reads=_OWN_VAE,
        network="SanaTransformer2DModel",
        pipelines=_SANA,
        billions=Billions(0.592, 2.614, 0.312),
        encoder=(4180, 1660),
    ),
    "prx": Facts(
        "prx",
        "hub",
        "straight",
        multiple=32,
        reads=_SIZED,
        network="PRXTransformer2DModel",
        pipelines=("PRXPipeline",),
        billions=Billions(1.171, 2.614),
    ),
    "flux2_klein": Facts(
        "flux2_klein",
        "hub",
        "straight",
        reads=_OWN_VAE,
        network="Flux2Transformer2DModel",
        pipelines=("Flux2KleinPipeline",),
        billions=Billions(3.876, 4.022),
    ),
    "zimage": Facts(
        "zimage",
        "hub",
        "straight",
        reads=_SIZED,
        network="ZImageTransformer2DModel",
        billions=Billions(6.155, 4.022),
    ),
    "qwen_image": Facts(
        "qwen_image",
        "hub",
        "straight",
        reads=_OWN_VAE,
        network="QwenImageTransformer2DModel",
        pipelines=("QwenImagePipeline",),
        billions=Billions(20.43, 8.292, 0.127),
        encoder=(0, 0),
    ),
    "prx_pixel": Facts(
        "prx_pixel",
        "hub",
        "straight",
        multiple=32,
        reads=tuple(key for key in _OWN_VAE if key != "vae_checkpointing"),
        network="PRXTransformer2DModel",
        pipelines=("PRXPixelPipeline",),
        billions=Billions(7, 0, 0),
    ),
    "chroma": Facts(
        "chroma",
        "hub",
        "straight",
        reads=_SIZED,
        network="ChromaTransformer2DModel",
        billions=Billions(8.9, 4.762),
    ),
    "pixart": Facts(
        "pixart",
        "hub",
        "table",
        reads=tuple(key for key in _SIZED if key != "lora"),
        network="PixArtTransformer2DModel",
        pipelines=("PixArtSigmaPipeline",),
        billions=Billions(0.61, 4.762),
    ),
    "lumina2": Facts(
        "lumina2",
        "hub",
        "straight",
        reads=_SIZED,
        network="Lumina2Transformer2DModel",
        billions=Billions(2.61, 2.614),
    ),
    "gaussian": Facts("gaussian", "formula", "straight", multiple=0, size=8, reads=("size", "std")),
}
"""Every prior that ships."""
DEFAULT = "tiny_instaflow"
"""The prior where none is named: of the embedded ones it sees the tiny world most sharply."""
