"""The settings of the loss, as `settings.py` declares the others. The module imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from threestudio_rf.app.settings.groups import LEVELS, opt

WEIGHTS = ("uniform", "sigma2", "alpha_sigma2", "sigma_over_alpha")
NOISES = ("random", "rev", "push_back", "inverted", "ism", "trace")
COMBINERS = ("cfg", "csd", "csd_negative", "nfsd", "bridge", "vsd", "trace")
LAWS = ("uniform", "annealed", "logit_normal", "dreamtime")
TRACE = {"above": 0, "high": 1, "length": 2}
CURVE = {"low": -100, "high": 100, "length": 3}


@dataclass
class LossConfig:
    """Score distillation: noise source, space, weight, guidance scale, window of noise levels, regularisers."""

    name: str = opt("rfds", "preset")
    space: str = opt("flow", "space of the residual", choices=("x0", "eps", "v", "flow"))
    weight: str = opt("uniform", "weight of a noise level", choices=WEIGHTS)
    noise: str = opt("random", "where the noise comes from", choices=NOISES)
    rev_step: float | None = opt(None, "step k of noise=rev; null: 1 - t", above=0, high=1)
    rev_steps: int = opt(1, "number of steps of noise=rev", low=1, high=100)
    invert_steps: int = opt(10, "noise=inverted, push_back, ism: steps from t = 0 to 1", low=1, high=1000)
    invert_scale: float = opt(0.0, "guidance scale of that inversion; 0: no prompt", low=-1000, high=1000)
    invert_eta: float = opt(0.0, "share of fresh noise in that inversion", low=0, high=1)
    ism_delta: float = opt(0.05, "noise=ism: from the time before to t", above=0, high=1)
    trace_t: list[float] = opt([0.02, 0.7], "noise=trace: window of its estimate's time", **TRACE)
    huber: float | None = opt(None, "c of the pseudo-Huber distance; null: the residual as it is", low=0, high=1000)
    combiner: str = opt("cfg", "how the predictions combine", choices=COMBINERS)
    scale: float = opt(100.0, "guidance: uncond + scale (cond - uncond)", low=0, high=1000)
    guidance_interval: list[float] = opt([0.0, 1.0], "noise levels that hear it; others: the prompt alone", **LEVELS)
    stage_two: float | None = opt(None, "share of the run after which the second stage begins", above=0, high=1)
    stage_two_noise: str = opt("", "noise of the second stage; empty: the same", choices=("", *NOISES))
    stage_two_combiner: str = opt("", "combiner of the second stage; empty: the same", choices=("", *COMBINERS))
    neg_prompt: str = opt("", "role neg of nfsd and csd_negative; empty: negative_prompt")
    target_prompt: str = opt("", "role target of bridge, with {prompt} in it")
    artifact_prompt: str = opt("", "role artifact of bridge, with {prompt} in it")
    twin_rank: int = opt(4, "vsd, trace: rank of the twin's adapters", low=1, high=1024)
    twin_lr: float = opt(1e-4, "vsd, trace: learning rate of the twin", above=0, high=1)
    perp_neg: bool = opt(False, "Perp-Neg: mix the prompts of neighbouring views, push away from front and side")
    perp_neg_f_fs: list[float] = opt([4.0, 0.5, -2.426], "push a exp(-b r) + c from the front view, in front", **CURVE)
    perp_neg_f_sf: list[float] = opt([4.0, 0.5, -2.426], "the same from the side view, in front", **CURVE)
    perp_neg_f_fsb: list[float] = opt([1.0, 0.5, 0.967], "the same from the front view, behind", **CURVE)
    perp_neg_f_sb: list[float] = opt([1.0, 0.5, -0.606], "the same from the side view, behind", **CURVE)
    t_min: Any = opt(0.02, "lowest noise level", ramp=True, above=0, high=1)
    t_max: Any = opt(0.98, "highest noise level", ramp=True, above=0, high=1)
    t_law: str = opt("uniform", "how t is drawn", choices=LAWS)
    t_shift: float = opt(1.0, "resolution shift of the draw of t, or of its fall (SD3: 3)", above=0, high=100)
    t_width: float = opt(0.0, "width of the moving window of t_law=annealed, dreamtime", low=0, high=1)
    t_bump: list[float] = opt([0.8, 0.5, 0.3, 0.1], "m1, m2, s1, s2 of t_law=dreamtime", low=0, high=10, length=4)
    draws: int = opt(1, "noises and stratified t per rendering, their gradients averaged", low=1, high=64)
    lambda_distill: Any = opt(1.0, "factor of the distillation loss", ramp=True, low=0)
    lambda_sparsity: Any = opt(0.0, "factor of mean sqrt(opacity^2 + 0.01)", ramp=True, low=0)
    lambda_opaque: Any = opt(0.0, "factor of the entropy of opacity", ramp=True, low=0)
    lambda_orient: Any = opt(0.0, "factor of normals that look away", ramp=True, low=0)
    lambda_z_variance: Any = opt(0.0, "factor of the depth variance along rays", ramp=True, low=0)
    lambda_border: Any = opt(0.0, "factor of what lies near the border of the scene", ramp=True, low=0)
    lambda_tv: Any = opt(0.0, "factor of the total variation of the picture", ramp=True, low=0)
    lambda_laplacian: Any = opt(0.0, "mesh: factor of vertices away from their neighbours' mean", ramp=True, low=0)
    lambda_normal_consistency: Any = opt(0.0, "mesh: factor of the angle between faces", ramp=True, low=0)
    lambda_convex: Any = opt(0.0, "factor of hollows, of a mesh or of a field's rendered normals", ramp=True, low=0)
