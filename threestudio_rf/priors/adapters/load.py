"""Opening a folder, or a repository of the hub, for an `Adapter`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from threestudio_rf.core.convert import Kind
from threestudio_rf.core.level import DiscreteVP
from threestudio_rf.priors.adapters.base import Adapter, FolderPrior
from threestudio_rf.priors.adapters.distilled import warn_distilled
from threestudio_rf.priors.adapters.text import PipelineText
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.hub import Places, places
from threestudio_rf.priors.folder.layout import Shape, Table, read_index
from threestudio_rf.priors.folder.load import check_parts, usable_dtype
from threestudio_rf.priors.folder.parts import PLAIN, FolderParts, PartOptions
from threestudio_rf.priors.sampling.scheduler import Scheduler
from threestudio_rf.priors.sd import NEVER_FETCHED, read_kind, table_of


def load_adapted(
    adapter: Adapter,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    size: int = 0,
    cache: Path | None = None,
    options: PartOptions = PLAIN,
    offline: bool = False,
) -> FolderPrior:
    """The prior from a local folder or owner/name; PriorError with a text for the user when it cannot be used.

    `size` is the side of its pictures in pixels, 0 the folder's own. `cache` is the folder of embedded texts, None
    keeps them in memory only. On a CPU float16 becomes float32. `offline`: nothing is downloaded. Warns of a network
    whose field is distilled.
    """
    device = torch.device(device)
    dtype = usable_dtype(dtype, device)
    options.check(device)
    at = _places(adapter, path, revision=revision, variant=variant, vae=options.vae, offline=offline)
    warn_distilled(at.folder, str(path), adapter.network[0])
    shape = sized(adapter.shape(at), size)
    kind, table = _path(adapter, at.folder)
    text = PipelineText(at.folder, adapter.pipeline, adapter.text, dtype, device, variant, options.changes)
    scheduler = Scheduler(
        Table(at.folder / "scheduler/scheduler_config.json"),
        table,
        tokens=(shape.size // shape.patch) ** 2,
        even=adapter.sigmas,
        law=adapter.shift,
        path=adapter.path,
        start=adapter.start,
        lengths=adapter.lengths,
    )
    network = Table(at.folder / adapter.network[0] / "config.json")
    return FolderPrior(
        adapter,
        shape,
        FolderParts(
            at,
            adapter.network,
            device=device,
            dtype=dtype,
            shifted=True,
            pixels=not adapter.vaes,
            variant=variant,
            options=options,
        ),
        text,
        kind=kind,
        table=table,
        cache=ConditionCache(cache, f"{path} {adapter.name}", f"{revision} {text.revision()}", str(dtype)),
        pipeline=scheduler,
        n=scheduler.trained * network.real("timestep_scale", 1.0, above=0),
    )


def sized(shape: Shape, size: int) -> Shape:
    """`shape` with pictures of `size` pixels, 0 for its own; PriorError where that is no multiple."""
    multiple = shape.factor * shape.patch
    if size % multiple:
        raise PriorError(f"prior.size={size}: expected a multiple of {multiple}")
    return replace(shape, size=size // shape.factor) if size else shape


def _path(adapter: Adapter, folder: Path) -> tuple[Kind, DiscreteVP | None]:
    if adapter.kind is not None:
        return adapter.kind, None
    kind = read_kind(folder)
    return kind, table_of(folder, kind)


def check_folder(adapter: Adapter, folder: Path, variant: str | None, *, vae: bool = True) -> None:
    """Look at every file the prior needs without loading any weights. PriorError for what is missing or broken."""
    read_index(folder, adapter.name)
    parts = [adapter.network[0], *(["vae"] if vae and adapter.vaes else []), *adapter.text.encoders]
    check_parts(folder, parts, dict([adapter.network]) | dict(adapter.text.encoders), variant, adapter.vaes)


def _places(
    adapter: Adapter, path: str | Path, *, revision: str | None, variant: str | None, vae: str, offline: bool
) -> Places:
    skipped = [*NEVER_FETCHED, *(["vae"] if vae else [])]

    def fetch(repository: str, local_only: bool) -> Path:
        import diffusers

        folder = getattr(diffusers, adapter.pipeline).download(
            repository,
            revision=revision,
            variant=variant,
            local_files_only=local_only,
            use_safetensors=True,
            **dict.fromkeys(skipped),
        )
        return Path(folder)

    def complete(folder: Path) -> None:
        check_folder(adapter, folder, variant, vae=not vae)

    return places(path, fetch, complete, tiny_vae=vae, offline=offline)
