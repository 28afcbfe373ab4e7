"""Pictures from Python, by the code behind `task=sample`:

    from threestudio_rf import invert, load_prior, sample

    images = sample("a red mushroom", prior="tiny_sd3", n=4, seed=0)      # (4, 3, 64, 64) in [0, 1]
    noise = invert(images[:1], "a red mushroom", sampler="heun")          # (1, 16, 8, 8)
    again = sample("a red mushroom", latents=noise, sampler="heun", cfg=1)

Settings are those of `task=sample` by name (`python launch.py --help` lists them), with the same defaults and checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threestudio_rf.app.build import sampling as task
from threestudio_rf.app.build.check.config import check_group
from threestudio_rf.app.build.picture import read_mask, read_picture
from threestudio_rf.app.build.scene import build_prior, pick_device
from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.pictures import Pictures, pictures
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.groups import PriorConfig, SampleConfig
from threestudio_rf.app.settings.layers import settings as settings_from
from threestudio_rf.core.model import Corrector
from threestudio_rf.core.sample import State
from threestudio_rf.core.sample import invert as inverted
from threestudio_rf.core.solve import QUIET
from threestudio_rf.priors.base import Prior
from threestudio_rf.priors.facts import DEFAULT

Picture = Tensor | Path | str
FILES = ("image", "mask", "strip", "log_every", "view")


def load_prior(name: str = DEFAULT, *, device: str = "auto", **settings: Any) -> Prior:
    """The prior `prior=name` with the settings of configs/prior, for many calls of `sample` on one `device`.

    `settings` are those of the group `prior` by name: path (a folder or owner/name on the hub), dtype (auto, fp32,
    bf16, fp16), revision, variant and the others. Raises UserError for an unknown name or setting, or a device that is
    not there, PriorError for weights that cannot be used.
    """
    config = settings_from({"prior": name, "task": "doctor"})
    known = [field.name for field in fields(PriorConfig) if field.name != "name"]
    check_names(settings, known)
    config.prior, config.device = replace(config.prior, **settings), device
    check_group(config, "prior")
    return build_prior(config.prior, pick_device(device))


def sample(
    prompt: str,
    *,
    prior: str | Prior = DEFAULT,
    n: int = 1,
    seed: int = 0,
    negative_prompt: str = "",
    image: Picture | None = None,
    mask: Picture | None = None,
    latents: Tensor | None = None,
    callback: Callable[[State], None] | None = None,
    corrector: Corrector | None = None,
    device: str = "auto",
    **settings: Any,
) -> Pictures:
    """`n` pictures (n, 3, H, W) in [0, 1], float32 on the CPU, of the prior's own size.

    Picture i depends on `seed` and i only, not on n or the batch. `image` is a file or a tensor (3, H, W) or
    (1, 3, H, W) in [0, 1] of any size to start from, `mask` one of the same height and width whose white part is made
    anew (SDEdit, Meng et al. 2021; blending as diffusers' inpainting). `latents` (n, C, h, w) are the start instead of
    noise, as `invert` returns it; n is then their number. `callback` is called after every step of every batch with its
    `State`: the number of steps left, the time t (B,) in [0, 1], x and x0_hat (B, C, h, w). `corrector(eps_hat, x, t)`
    returns another eps_hat (B, C, h, w) after guidance (LDM's score corrector).

    `settings` are those of `task=sample` by name: sampler (auto, ddpm, ddim, euler, midpoint, heun,
    fireflow, dpmpp_2m), steps, eta, cfg (1 is none), rescale, perp_neg, spacing, shift, strength, limit, temperature,
    repeat_noise, batch and the others.

    Raises UserError for an unknown or unfit setting or a broken file, PriorError for weights that cannot be used,
    ValueError for tensors of another shape.
    """
    chosen = settings_of(settings | {"n": n if latents is None else len(latents)})
    if latents is not None and image is not None:
        raise UserError("latents and image are both a start: give only one of them")
    task.check_sample(chosen, negative_prompt=bool(negative_prompt), image=image is not None, mask=mask is not None)
    where = pick_device(device)
    network = load_prior(prior, device=str(where)) if isinstance(prior, str) else prior
    if latents is not None and latents.shape[1:] != network.latent_shape:
        raise ValueError(
            f"latents: got {tuple(latents.shape)}, expected (n, {', '.join(map(str, network.latent_shape))})"
        )
    made = task.plan(
        network,
        prompt,
        chosen,
        negative_prompt=negative_prompt,
        seed=seed,
        device=where,
        image=None if image is None else picture_of(image, "image"),
        mask=None if mask is None else picture_of(mask, "mask"),
        corrector=corrector,
    )
    made_pictures = []
    for first in range(0, chosen.n, chosen.batch):
        numbers = range(first, min(first + chosen.batch, chosen.n))
        start = None if latents is None else latents[first : first + chosen.batch]
        for state in task.run(made, numbers, latents=start):
            if callback is not None:
                callback(state)
        made_pictures.append(network.decode(state.x).cpu())
    return pictures(torch.cat(made_pictures))


def invert(
    image: Picture,
    prompt: str = "",
    *,
    prior: str | Prior = DEFAULT,
    cfg: float = 1.0,
    device: str = "auto",
    **settings: Any,
) -> Tensor:
    """The noise (1, C, h, w), on the CPU, from which `sample(prompt, latents=...)` and the same settings make `image`.

    The sampler runs along rising times: DDIM inversion (Song et al. 2021) for tables, the ODE of a flow backwards.
    `image` is a file or a tensor (3, H, W) or (1, 3, H, W) in [0, 1], fitted to the prior's size. The way back is exact
    up to the solver's error (smaller with more steps, heun or midpoint) and the VAE's; a guidance scale `cfg` above 1
    makes it worse. Raises as `sample`, and UserError for a sampler with fresh noise (ddpm, eta above 0).
    """
    chosen = settings_of(settings | {"cfg": cfg})
    where = pick_device(device)
    network = load_prior(prior, device=str(where)) if isinstance(prior, str) else prior
    made = task.plan(network, prompt, chosen, device=where)
    if made.rule.noisy:
        raise UserError(f"sampler={made.rule.sampler} draws noise; expected ddim with eta=0, {', '.join(QUIET)}")
    known, _ = task.encoded(network, picture_of(image, "image"), None, made.device)
    with torch.no_grad():
        *_, last = inverted(made.field, known, made.times, rule=made.rule)
    return last.x.cpu()


def settings_of(given: dict[str, Any]) -> SampleConfig:
    """Checked settings of `task=sample`; UserError for an unknown name or a value out of range."""
    check_names(given, [field.name for field in fields(SampleConfig) if field.name not in FILES])
    chosen = SampleConfig(**given)
    check_group(Config(sample=chosen), "sample")
    return chosen


def check_names(given: Iterable[str], known: list[str]) -> None:
    """UserError for a setting that is not among the known ones."""
    for name in given:
        if name not in known:
            raise UserError(f"unknown setting {name}{suggestion(name, known)}")


def picture_of(image: Picture, key: str) -> Tensor:
    """(3, H, W) of a file or a tensor; ValueError for a tensor of another shape or with values that are not finite."""
    if not isinstance(image, Tensor):
        return read_mask(image, key).expand(3, -1, -1) if key == "mask" else read_picture(image, key)
    one = image[0] if image.ndim == 4 and len(image) == 1 else image
    if one.ndim != 3 or one.shape[0] not in (1, 3) or not bool(one.isfinite().all()):
        raise ValueError(f"{key}: got {tuple(image.shape)}, expected finite (3, H, W) or (1, 3, H, W)")
    return one.as_subclass(Tensor).detach().cpu().float().expand(3, -1, -1)
