"""Where a prior comes from: a local folder, else the hub's cache, else a download.

HF_HOME, HF_HUB_OFFLINE and HF_TOKEN are obeyed by huggingface_hub; the token is never printed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from threestudio_rf.priors.base import PriorError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    except RuntimeError as error:
        raise PriorError(f"prior.path={path}: {error}; give a path without ~") from None
    if local.is_dir():
        complete(local)
        return local
    if local.is_file():
        raise PriorError(f"{path} is a file; expected a folder in the layout of diffusers, or owner/name")
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
