"""Trained parts into the package: their folders, one first stage for all, and the sha256 sums of everything there."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

SHIPPED = ("tiny-sd3", "tiny-sd", "tiny-sd-v", "tiny-instaflow")
PRIORS = {
    "sd3": "tiny-sd3",
    "sd": "tiny-sd",
    "sd_v": "tiny-sd-v",
    "instaflow": "tiny-instaflow",
    "reflow": "tiny-instaflow",
}
VAE_WEIGHTS = Path("vae/diffusion_pytorch_model.safetensors")


def folder_of(part: str) -> str:
    """The folder of the prior that a part of the training is. ValueError for a part that is no prior."""
    if part not in PRIORS:
        raise ValueError(f"start=shipped: got the part {part!r}, expected one of {', '.join(PRIORS)}")
    return PRIORS[part]


def ship(folder: Path, weights: Path) -> None:
    """Copy the trained priors and the judge that `folder` holds into `weights`; write the sha256 sums of all there.

    A flow before its reflow ("tiny-instaflow-1") is taken where the reflow was not done, or its folder was taken away
    because it did not win. The priors share one first stage: its file is kept once, in tiny-sd3, the others have a
    symbolic link to it.
    """
    weights.mkdir(parents=True, exist_ok=True)
    for name in SHIPPED:
        found = next((folder / source for source in (name, f"{name}-1") if (folder / source).is_dir()), None)
        if found is not None:
            shutil.rmtree(weights / name, ignore_errors=True)
            shutil.copytree(found, weights / name)
    if (folder / "judge.safetensors").is_file():
        shutil.copy2(folder / "judge.safetensors", weights / "judge.safetensors")
    for name in SHIPPED[1:]:
        _link(weights / name / VAE_WEIGHTS, weights / SHIPPED[0] / VAE_WEIGHTS)
    files = sorted(file for file in weights.rglob("*") if file.is_file() and file.name != "SHA256SUMS")
    sums = [(_digest(file), file.relative_to(weights).as_posix()) for file in files]
    (weights / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for digest, name in sums))


def _link(file: Path, original: Path) -> None:
    """Replace `file` by a relative link to an equal `original`. ValueError when their contents differ."""
    if not file.is_file() or file.is_symlink():
        return
    if not original.is_file() or _digest(file) != _digest(original):
        raise ValueError(f"{file}: got another first stage than {original}, expected the same one")
    file.unlink()
    file.symlink_to(Path("../..") / original.relative_to(original.parents[2]))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
