"""The settings of task=edit and task=invert. The module imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from threestudio_rf.app.settings.groups import SOLVERS, opt

EDITORS: tuple[str, ...] = ("euler", "rf_solver", "fireflow", "rf_inversion", "direct", "irfds")
EDITORS += ("irfds_sd3", "irfds_fast", "flowedit", "flowalign", "dds", "pds", "drfs", "flowchef", "sdedit")


@dataclass
class EditConfig:
    """task=edit and task=invert. There the names go without `edit.`: method=flowedit steps=10.

    What is null is the method's own value for the prior; a setting that the method does not have is refused.
    """

    image: str = opt("", "the picture, or a folder of pictures")
    source: str = opt("", "what the picture shows; may be empty")
    prompts: list[str] = opt([], 'several prompts at once instead of prompt=: prompts=["a red cat","a blue cat"]')
    method: str | None = opt(None, "method; null: flowedit for task=edit, fireflow for task=invert", choices=EDITORS)
    mask: str = opt("", "picture whose white part may change, the black part is kept")
    paper: bool = opt(False, "the method's published settings instead of those chosen for the embedded prior")
    keep: float = opt(
        0.15, "changes below this share of the strongest are dropped; 0: the picture as decoded", low=0, high=1
    )
    video: bool = opt(False, "task=edit: also write the way from picture to edit as trajectory.mp4")
    fps: float = opt(8.0, "pictures per second of the video", above=0, high=120)
    lpips: str = opt("", "folder with LPIPS weights (alexnet.pth and alex.pth): also give LPIPS")
    steps: int | None = opt(None, "steps (irfds: of the optimiser)", low=0, high=100000)
    down_steps: int | None = opt(None, "irfds: steps from noise to picture", low=1, high=1000)
    t_start: float | None = opt(None, "highest noise level, 0 clean to 1 noise", above=0, high=1)
    shift: float | None = opt(None, "resolution shift of the steps of a flow", above=0, high=100)
    cfg: float | None = opt(None, "guidance scale of the target prompt; 1: none", low=0, high=1000)
    cfg_source: float | None = opt(None, "guidance scale of the source prompt; 1: none", low=0, high=1000)
    solver: str | None = opt(None, "ODE methods: solver", choices=SOLVERS)
    gamma: float | None = opt(None, "rf_inversion: pull to one Gaussian sample on the way up", low=0, high=1)
    eta: float | None = opt(None, "rf_inversion: pull to the picture on the way down", low=0, high=1)
    eta_decay: float | None = opt(None, "rf_inversion: eta falls as (1 - i / steps)^eta_decay", low=0, high=100)
    sde: bool | None = opt(None, "rf_inversion: draw noise on the way down")
    start: float | None = opt(None, "rf_inversion, flowchef: share of the steps where the pull begins", low=0, high=1)
    stop: float | None = opt(None, "rf_inversion, flowchef: share of the steps where it ends", low=0, high=1)
    k: float | None = opt(None, "flowchef: length of the step towards the picture", low=0, high=10)
    draws: int | None = opt(None, "methods of differences: noises per step", low=1, high=1000)
    weight: str | None = opt(None, "methods of differences: of flows, or PDS's", choices=("flow", "posterior"))
    zeta: float | None = opt(None, "flowalign: pull between the implied pictures", low=0, high=1)
    base: str | None = opt(None, "flowalign: what the guidance counts from", choices=("uncond", "source"))
    n_min: int | None = opt(None, "flowedit: so many of the last steps sample the target", low=0, high=1000)
    of: int | None = opt(None, "flowedit: the steps are the last of so many from pure noise", low=1, high=1000)
    law: str | None = opt(None, "flowedit, dds, drfs: how the noise level goes", choices=("falling", "uniform"))
    drift: str | None = opt(None, "flowedit, dds, drfs: c of the target", choices=("none", "linear", "parabola"))
    rate: float | None = opt(None, "irfds: learning rate; flowedit, dds, drfs: factor of the step", low=0, high=1000)
    t_min: float | None = opt(None, "irfds, dds: lowest noise level that is drawn", above=0, high=1)
    t_max: float | None = opt(None, "irfds: highest noise level that is drawn", above=0, high=1)
    t_shift: float | None = opt(None, "irfds: resolution shift of the draw", above=0, high=100)
    t_count: int | None = opt(None, "irfds: t is one of so many times of a sampler", low=1, high=1000)
    init: str | None = opt(None, "irfds: the first noise", choices=("randn", "image", "inverted"))
    init_steps: int | None = opt(None, "irfds: steps of init=inverted", low=1, high=1000)
    optimiser: str | None = opt(None, "irfds: optimiser of the noise", choices=("adamw", "sgd"))
    accumulate: int | None = opt(None, "irfds: gradients per step of the optimiser", low=1, high=1000)
    penalty: float | None = opt(None, "irfds: factor of the noise's moments", low=0, high=1000)
