"""Where a prior comes from: a local folder, else the hub's cache, else a download.

HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are obeyed by huggingface_hub; the token is never printed.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import TINY, check_files, class_of, snapshot_of
from threestudio_rf.priors.folder.load import weight_files

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TINY_FILES = ["config.json", "diffusion_pytorch_model*.safetensors"]
OFFLINE_HELP = "prior=tiny_sd3 needs no download"


def locate(
    path: str, fetch: Callable[[str, bool], Path], complete: Callable[[Path], None], *, offline: bool = False
) -> Path:
    """The folder of `path`, a local folder or owner/name.

    `fetch(name, local_only)` returns the snapshot folder of a repository; `complete(folder)` raises PriorError when
    a folder is not whole, upon which a cached snapshot is fetched again, unless `offline`.
    """
    try:
        local = Path(path).expanduser()
        local.is_dir()
    except RuntimeError as error:
        raise PriorError(f"prior.path={path}: {error}; give a path without ~") from None
    except (OSError, ValueError) as error:
        raise PriorError(f"prior.path={path[:80]}: {getattr(error, 'strerror', None) or error}") from None
    if local.is_dir():
        snapshot = snapshot_of(local)
        if snapshot is not None:
            warnings.warn(f"{path} is a folder of the hub's cache: its snapshot {snapshot} is used", stacklevel=5)
        complete(snapshot or local)
        return snapshot or local
    if local.is_file():
        hint = "; LoRA weights go into prior.lora" if local.suffix == ".safetensors" else ""
        raise PriorError(f"{path} is a file; expected a folder in the layout of diffusers, or owner/name{hint}")
    if not REPOSITORY.fullmatch(path):
        raise PriorError(f"no such folder {path}; to download write owner/name")
    return from_hub(path, fetch, complete, offline=offline)


def from_hub(
    name: str, fetch: Callable[[str, bool], Path], complete: Callable[[Path], None], *, offline: bool = False
) -> Path:
    """Snapshot folder of a repository; the network is asked only when the cache does not hold all of it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    # HfHubHTTPError derives from the base error of whichever HTTP client is in use
    failures: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
    not_whole: tuple[type[Exception], ...] = (ValueError, *failures)
    try:
        folder = fetch(name, True)
        complete(folder)
        return folder
    except not_whole as error:
        if constants.HF_HUB_OFFLINE or offline:
            switch = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "prior.offline=true"
            raise PriorError(
                f"{name} is not (wholly) in the cache folder {constants.HF_HUB_CACHE} and {switch}, so it cannot be "
                f"downloaded; there is no local folder {name} either; {OFFLINE_HELP}"
            ) from error
    try:
        folder = fetch(name, False)
    except failures as error:
        raise PriorError(explain(name, error)) from error
    except ValueError as error:  # such as a repository whose parts are code of its own
        raise PriorError(f"{name} cannot be downloaded as a prior: {error}") from None
    complete(folder)
    return folder


def explain(name: str, error: BaseException) -> str:
    """One paragraph for what the hub answered; chained errors are looked through, the token is never shown."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{name}"
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(c, GatedRepoError) for c in causes):
        return (
            f"{name} is gated: accept its licence on {page}, then run `hf auth login` (or set HF_TOKEN) with an "
            f"account that has access; {OFFLINE_HELP}"
        )
    if any(isinstance(c, RevisionNotFoundError) for c in causes):
        return f"{name} has no such revision; look at {page}/tree/main and set prior.revision"
    if any(isinstance(c, RepositoryNotFoundError) for c in causes):
        return (
            f"the hub knows no repository {name}, or it is private and `hf auth login` is needed; there is no local "
            f"folder of that name either; {OFFLINE_HELP}"
        )
    codes = [c.response.status_code for c in causes if isinstance(c, HfHubHTTPError) and c.response is not None]
    if 401 in codes or 403 in codes:
        return f"the hub refused the login for {name}: run `hf auth login` or set a valid HF_TOKEN; {OFFLINE_HELP}"
    return f"{name} could not be downloaded ({type(causes[-1]).__name__}): is there a network? {OFFLINE_HELP}"


class Places(NamedTuple):
    """The prior's folder and that of its VAE."""

    folder: Path
    vae: Path


def places(
    path: str | Path,
    fetch: Callable[[str, bool], Path],
    complete: Callable[[Path], None],
    *,
    tiny_vae: str,
    offline: bool,
) -> Places:
    """Where a prior and its VAE are, after both were looked at; `fetch` and `complete` as in `locate`.

    `tiny_vae`: folder or owner/name of an AutoencoderTiny to use instead of the prior's own VAE, "" for that one; a
    whole prior's folder stands for the one in it.
    """
    folder = locate(str(path), fetch, complete, offline=offline)
    return Places(folder, locate_tiny(tiny_vae, offline=offline) if tiny_vae else folder / "vae")


def locate_tiny(name: str, *, offline: bool = False) -> Path:
    """Folder of the AutoencoderTiny `name`, a local folder or owner/name; PriorError when it is something else."""

    def inner(folder: Path) -> Path:
        whole = (folder / "model_index.json").is_file() and not (folder / "config.json").exists()
        return folder / "vae" if whole else folder

    def complete(folder: Path) -> None:
        check_files(inner(folder))
        found = class_of(inner(folder))
        if found != TINY:
            raise PriorError(f"prior.vae={name} holds a {found}, expected an {TINY} such as madebyollin/taesd")
        weight_files(inner(folder))

    def fetch(repository: str, local_only: bool) -> Path:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=TINY_FILES, local_files_only=local_only))

    return inner(locate(name, fetch, complete, offline=offline))
