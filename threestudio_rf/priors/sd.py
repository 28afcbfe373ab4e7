"""Stable Diffusion 1.5, 2.1-base, 2.1, and rectified flows in their shape (InstaFlow).

| kind       | path                      | label the network hears            | predict returns     |
|------------|---------------------------|------------------------------------|---------------------|
| eps, v, x0 | the scheduler's own table | index k = round(1000 t) - 1, >= 0  | the output          |
| flow       | straight                  | 1000 t, float32                    | minus the output    |

Nothing in a folder tells a flow from the others, so `kind` "flow" must be asked for (its network gives x0 - eps);
"auto" reads prediction_type of the scheduler's config. Two phases as in `sd3.py`. Latents are z scaling_factor of the
VAE's output z, without a shift, as in StableDiffusionPipeline.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import ALIASES, DiscreteVP, Schedule, betas, rectified_flow, zero_terminal
from threestudio_rf.priors.base import Condition, PriorError
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.hub import Places, places
from threestudio_rf.priors.folder.layout import Shape, Table, is_whole, read_index, vae_factor
from threestudio_rf.priors.folder.load import check_parts, usable_dtype
from threestudio_rf.priors.folder.parts import PLAIN, FolderParts, PartOptions, Parts
from threestudio_rf.priors.sampling.pipeline import Formula, Pipeline
from threestudio_rf.priors.sampling.scheduler import scheduler_of
from threestudio_rf.priors.text import ENCODER, SDText, excess

NETWORK = ("unet", "UNet2DConditionModel")
SCHEDULER = "scheduler/scheduler_config.json"
CLASSES = {"unet": NETWORK[1], ENCODER: "CLIPTextModel"}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
LICENCE_1 = "CreativeML OpenRAIL-M (Stable Diffusion 1)"
LICENCE_2 = "CreativeML OpenRAIL++-M (Stable Diffusion 2)"
FLOW_LICENCE = "CC-BY-NC-4.0 (InstaFlow's weights: no commercial use)"
OTHER_LICENCE = "unknown: see the page or folder the weights come from"
NEVER_FETCHED = ("safety_checker", "feature_extractor", "image_encoder")
FOREIGN_INPUTS: tuple[str, ...] = ("addition_embed_type", "class_embed_type", "num_class_embeds")
FOREIGN_INPUTS += ("encoder_hid_dim_type", "time_cond_proj_dim")


class SDPrior:
    """The adapter. `table` holds the trained levels of kinds eps, v and x0; a flow has none.

    `mirror_time` tells a flow 1000 (1 - t), wrong by construction, to compare with losses that do so. `time_shift` is
    that of SD's samplers. ValueError for a flow with a table, another kind without one, or mirrored.
    """

    whole_labels = True

    def __init__(
        self,
        shape: Shape,
        parts: Parts,
        text: SDText,
        *,
        kind: Kind,
        table: DiscreteVP | None,
        cache: ConditionCache,
        name: str = "sd",
        licence: str = OTHER_LICENCE,
        mirror_time: bool = False,
        pipeline: Pipeline | None = None,
    ) -> None:
        if (kind == "flow") != (table is None) or (mirror_time and kind != "flow"):
            got = f"{kind}, {'no' if table is None else 'a'} table, mirror_time={mirror_time}"
            raise ValueError(
                f"kind: got {got}, expected a flow without a table, or another kind with one, not mirrored"
            )
        self.shape, self.parts, self.text, self.cache = shape, parts, text, cache
        self.kind, self.table, self.mirror_time = kind, table, mirror_time
        self.name, self.licence = name, licence
        self.schedule: Schedule = rectified_flow if table is None else table
        self.latent_shape = (shape.channels, shape.size, shape.size)
        self.pipeline: Pipeline = Formula(self.schedule) if pipeline is None else pipeline
        self.time_shift = self.pipeline.time_shift

    def load(self) -> None:
        """Load network and VAE now, with their checks, instead of on first use."""
        _ = self.parts.network, self.parts.vae

    def embed(self, prompts: list[str]) -> Condition:
        """`prompt` (N, T, D); from the cache where it knows the text, each text embedded once."""
        return self.cache.embed(prompts, self.text.embed).to(self.text.device)

    @cached_property
    def _tokenizer(self) -> Any:
        return self.text.tokenizer()

    def fits(self, text: str) -> bool:
        """Whether CLIP's window holds the whole text (77 tokens for released weights)."""
        return not excess(text, self._tokenizer)

    def label(self, t: Tensor) -> Tensor:
        """What the network hears at t (B,): the index of its level, int64; for a flow 1000 t, float32."""
        if self.table is None:
            return (1000 * (1 - t if self.mirror_time else t)).to(torch.float32)
        return self.table.index(t) if self.whole_labels else self.table.between(t)

    def between(self) -> SDPrior:
        """The same network, weights shared, whose labels are not rounded to the table's entries."""
        other = copy(self)
        other.whole_labels = False
        return other

    @property
    def network(self) -> Any:
        """The UNet, on the device."""
        return self.parts.network

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`kind`, as `Prior.predict`; ValueError unless the latents' sides are multiples of the UNet's factor."""
        return self.answer(x_t, t, condition)

    def answer(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """`predict` with a graph, for what learns inside the network."""
        self.shape.check_latents(x_t)
        condition.require(["prompt"], len(x_t))
        device, dtype = self.text.device, self.text.dtype
        out: Tensor = self.parts.network(
            x_t.to(device, dtype),
            self.label(t).to(device),
            encoder_hidden_states=condition.tensors["prompt"].to(device, dtype),
            return_dict=False,
        )[0].to(x_t.device, torch.float32)
        return -out if self.kind == "flow" else out

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1], not clamped -> (B, C, H/8, W/8), differentiable in `image`. The posterior's mode, or
        a sample of it with a generator. ValueError unless H and W are multiples of VAE's factor times UNet's (64)."""
        self.shape.check_image(image)
        return self.parts.encode(image, generator)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, 3, H, W) in [0, 1]."""
        return self.parts.decode(latents)


def read_shape(at: Places) -> Shape:
    """What the configs of network and VAE say. PriorError for a missing entry, a VAE of another shape, and networks
    that read more than a text (SDXL, inpainting, upscalers, consistency models)."""
    network = Table(at.folder / "unet/config.json")
    foreign = [key for key in FOREIGN_INPUTS if network.content.get(key) is not None]
    if network.content.get("addition_embed_type") == "text":  # pooled from the text it reads anyway
        foreign.remove("addition_embed_type")
    channels, size = network.whole("in_channels"), network.side("sample_size")
    if network.whole("out_channels") != channels:
        foreign.append(f"in_channels {channels} for {network.whole('out_channels')} of latents")
    if foreign:
        raise PriorError(f"{at.folder}: its network reads more than latents, time and text: {', '.join(foreign)}")
    patch = 2 ** (len(network.wholes("block_out_channels")) - 1)
    return Shape(channels=channels, size=size, patch=patch, factor=vae_factor(at.vae, channels))


def read_table(folder: Path) -> DiscreteVP:
    """The trained levels by the scheduler's config, to alpha = 0 with rescale_betas_zero_snr. PriorError for a table
    unknown to core."""
    file = folder / SCHEDULER
    config = Table(file)
    names = ALIASES["diffusers"]
    trained, count = config.numbers("trained_betas"), config.whole("num_train_timesteps", 1000, high=100_000)
    if trained and len(trained) != count:
        raise config.refuse("trained_betas", f"as many numbers as num_train_timesteps says, {count}")
    try:
        name = "trained_betas" if trained else names[config.text("beta_schedule")]
        table = betas(
            name,
            count if trained else config.whole("num_train_timesteps", high=100_000),
            start=config.real("beta_start", 0.0001, above=0),
            end=config.real("beta_end", 0.02, above=0),
            trained=trained,
        )
    except KeyError as error:
        raise PriorError(f"{file}: got the unknown beta_schedule {error}, expected {', '.join(names)}") from None
    except PriorError:
        raise
    except (ValueError, TypeError) as error:
        raise PriorError(f"{file}: {error}") from None
    clean = config.content.get(
        "set_alpha_to_one", config.content.get("_class_name") != "PNDMScheduler"
    )  # diffusers' own defaults
    if config.content.get("rescale_betas_zero_snr"):
        table = zero_terminal(table)
    return DiscreteVP(table, final="clean" if clean else "first")


def table_of(folder: Path, kind: Kind) -> DiscreteVP | None:
    """`read_table`, None for a flow; PriorError for eps on a table without data at its end."""
    table = None if kind == "flow" else read_table(folder)
    if kind == "eps" and table is not None and table.abar[-1] == 0:
        raise PriorError(f"{folder / SCHEDULER}: its table ends at alpha = 0, where eps says nothing of the picture")
    return table


def read_kind(folder: Path) -> Kind:
    """What the network of an SD folder predicts, by its scheduler's config; PriorError for what is no noise model."""
    found = Table(folder / SCHEDULER).text("prediction_type", "epsilon")
    if found not in PREDICTIONS:
        raise PriorError(
            f"{folder}: the scheduler's prediction_type is {found!r}, expected one of {', '.join(PREDICTIONS)}; "
            "for a rectified flow use prior=instaflow"
        )
    return cast(Kind, PREDICTIONS[found])


def licence_of(folder: Path, kind: Kind) -> str:
    """The licence of released weights of that kind and width of text, which tells SD's generations apart."""
    width: Any = Table(folder / "unet/config.json").content.get("cross_attention_dim")
    known = {768: LICENCE_1, 1024: LICENCE_2}
    return FLOW_LICENCE if kind == "flow" else known.get(width, OTHER_LICENCE) if is_whole(width) else OTHER_LICENCE


def check_folder(folder: Path, variant: str | None, *, vae: bool = True) -> None:
    """Look at every file SD needs without loading any weights. PriorError for what is missing or broken."""
    read_index(folder, "sd")
    check_parts(folder, [NETWORK[0], *(["vae"] if vae else []), ENCODER], CLASSES, variant)


def check_kind(kind: str, mirror_time: bool) -> None:
    """PriorError for an unknown `kind`, or a mirrored one that is no flow."""
    if kind not in ("auto", "eps", "v", "flow") or (mirror_time and kind != "flow"):
        raise PriorError(
            f"kind={kind}, mirror_time={mirror_time}: expected auto, eps, v or flow; only a flow is mirrored"
        )


def load_sd(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kind: str = "auto",
    mirror_time: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    cache: Path | None = None,
    name: str = "sd",
    licence: str | None = None,
    options: PartOptions = PLAIN,
    offline: bool = False,
) -> SDPrior:
    """SD from a local folder or owner/name; PriorError with a text for the user when it cannot be used.

    `kind` is "auto", "eps", "v" or "flow", see the module's head. `cache` is the folder of embedded texts, None keeps
    them in memory only. `licence` None is told by the width of the text. On a CPU float16 becomes float32. `offline`:
    nothing is downloaded.
    """
    check_kind(kind, mirror_time)
    device = torch.device(device)
    dtype = usable_dtype(dtype, device)
    options.check(device)

    at = _places(path, revision=revision, variant=variant, vae=options.vae, offline=offline)
    found: Kind = read_kind(at.folder) if kind == "auto" else cast(Kind, kind)
    table = table_of(at.folder, found)
    text = SDText(at.folder, dtype, device, variant, options.changes)
    return SDPrior(
        read_shape(at),
        FolderParts(at, NETWORK, device=device, dtype=dtype, shifted=False, variant=variant, options=options),
        text,
        kind=found,
        table=table,
        cache=ConditionCache(cache, f"{path} sd", f"{revision} {text.revision()}", str(dtype)),
        name=name,
        licence=licence or licence_of(at.folder, found),
        mirror_time=mirror_time,
        pipeline=scheduler_of(Table(at.folder / SCHEDULER), table),
    )


def _places(path: str | Path, *, revision: str | None, variant: str | None, vae: str, offline: bool) -> Places:
    skipped = [*NEVER_FETCHED, *(["vae"] if vae else [])]

    def fetch(repository: str, local_only: bool) -> Path:
        from diffusers import StableDiffusionPipeline

        folder = StableDiffusionPipeline.download(
            repository,
            revision=revision,
            variant=variant,
            local_files_only=local_only,
            use_safetensors=True,
            **dict.fromkeys(skipped),
        )
        return Path(folder)

    def complete(folder: Path) -> None:
        check_folder(folder, variant, vae=not vae)

    return places(path, fetch, complete, tiny_vae=vae, offline=offline)
