"""Scheduler configs of a folder, sampled as diffusers' own pipeline of that folder does it.

Oracles: StableDiffusionPipeline and StableDiffusion3Pipeline on folders with random weights, whole runs from the same
latents, with the scheduler that the config names.

Seen to fail: labels rounded to the entries of the table (EulerDiscrete, linspace and karras); the start not scaled; the
levels of the table in place of the sigmas; the label 1000 t where num_train_timesteps is another; a dynamic shift taken
as static; the betas not rescaled.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.app.build.sampling import grid_of, plan, run
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.base import Prior, PriorError
from threestudio_rf.priors.folder.layout import Table
from threestudio_rf.priors.sampling.scheduler import ROWS, Scheduler
from threestudio_rf.priors.sd import SDPrior, load_sd, read_kind, read_table
from threestudio_rf.priors.sd3 import SD3Prior, load_sd3

BETAS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "num_train_timesteps": 1000,
}
V, SNR = {"prediction_type": "v_prediction"}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
PLAIN = {"clip_sample": False, "set_alpha_to_one": False}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
NUMBERS = (0, 1)


def ours(prior: Prior, steps: int, **settings: Any) -> Tensor:
    """The last latents of pictures 0 and 1 of seed 0, with the sampler and the stops of the folder."""
    made = plan(prior, "a red mushroom", SampleConfig(steps=steps, cfg=3.0, **settings), negative_prompt="a blue ball")
    *_, last = run(made, NUMBERS)
    return last.x


def theirs(pipe: Any, name: str, config: dict[str, Any], prior: Prior, steps: int, **given: Any) -> Tensor:
    """The same by the pipeline with the scheduler of the config."""
    import diffusers

    pipe.scheduler = getattr(diffusers, name).from_config(config)
    latents = torch.cat([normal((1, *prior.latent_shape), generator(0, i, "sample")) for i in NUMBERS])
    return pipe(
        "a red mushroom",
        negative_prompt="a blue ball",
        num_images_per_prompt=len(NUMBERS),
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=latents.to(pipe.dtype),
        generator=[generator(0, i, "fresh") for i in NUMBERS],
        output_type="latent",
        **given,
    ).images


class Wide:
    """torch, but what asks for float32 gets float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def widened(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pipeline in float64 with its Euler steps: they begin with noise times sigma, at zero terminal SNR 4096, of
    which float32 loses 2.4e-4."""
    from diffusers.schedulers import scheduling_euler_discrete

    monkeypatch.setattr(scheduling_euler_discrete, "torch", Wide())
    return copy.deepcopy(pipe).to(torch.float64)


def close(one: Tensor, other: Tensor) -> bool:
    return bool(other.isfinite().all()) and float(other.std()) > 0.1 and float((one - other).abs().max()) < 1e-4


@pytest.fixture(scope="module")
def stable_pipe(sd_folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def written(folder: Path, name: str, config: dict[str, Any]) -> Path:
    file = folder / "scheduler" / "scheduler_config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"_class_name": name, **config}))
    return file


def stable(base: SDPrior, folder: Path, name: str, config: dict[str, Any]) -> SDPrior:
    """The same network and texts under another scheduler config."""
    file = written(folder, name, config)
    table = read_table(folder)
    pipeline, kind = Scheduler(Table(file), table), read_kind(folder)
    return SDPrior(base.shape, base.parts, base.text, kind=kind, table=table, cache=base.cache, pipeline=pipeline)


EULER, DPM = "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        ("DDIMScheduler", 5, {**PLAIN, "timestep_spacing": "trailing"}),
        ("DDIMScheduler", 1, {**PLAIN, "timestep_spacing": "trailing"}),
        ("DDIMScheduler", 4, {**PLAIN, **SNR, "timestep_spacing": "trailing"}),
        ("DDPMScheduler", 4, {**PLAIN, **SNR, "timestep_spacing": "trailing"}),
        ("DDPMScheduler", 7, {**PLAIN, "timestep_spacing": "linspace"}),
        (EULER, 6, {}),
        (EULER, 6, {**V, "timestep_spacing": "leading"}),
        (EULER, 6, {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}),
        (EULER, 6, {"use_karras_sigmas": True}),
        (EULER, 5, {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}),
        (EULER, 6, {**V, "use_exponential_sigmas": True}),
        (EULER, 6, {**SNR, "timestep_spacing": "trailing"}),
        (DPM, 6, {}),
        (DPM, 6, {**V, "timestep_spacing": "leading"}),
        (DPM, 6, {**SNR, "timestep_spacing": "trailing"}),
        (DPM, 8, {"use_karras_sigmas": True}),
        (DPM, 6, {"use_exponential_sigmas": True}),
        (DPM, 15, {"final_sigmas_type": "sigma_min"}),
        (DPM, 6, {"solver_order": 1}),
        (DPM, 6, {"use_lu_lambdas": True}),
        (DPM, 6, {"use_karras_sigmas": True, "sigma_min": 0.1}),
        (EULER, 6, {"interpolation_type": "log_linear"}),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_sample_of_stable_diffusion_follows_its_scheduler_config(
    name: str,
    steps: int,
    config: dict[str, Any],
    sd: SDPrior,
    stable_pipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prior = stable(sd, tmp_path, name, BETAS | config)
    pipe = widened(stable_pipe, monkeypatch) if name == EULER else stable_pipe
    assert close(ours(prior, steps), theirs(pipe, name, BETAS | config, prior, steps))
    assert prior.pipeline.notes(steps) == ()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("FlowMatchEulerDiscreteScheduler", {"shift": 2.5}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "num_train_timesteps": 500}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 1.1}),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "shift_terminal": 0.1}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_karras_sigmas": True}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
        (DPM, FLOW),
    ],
    ids=lambda value: ",".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_sample_of_stable_diffusion_3_follows_its_scheduler_config(
    name: str, config: dict[str, Any], sd3: SD3Prior, pipe: Any, tmp_path: Path
) -> None:
    tokens = (sd3.shape.size // sd3.shape.patch) ** 2
    pipeline = Scheduler(Table(written(tmp_path, name, config)), None, tokens=tokens)
    prior, kept = SD3Prior(sd3.shape, sd3.parts, sd3.text, cache=sd3.cache, pipeline=pipeline), pipe.scheduler
    expected = theirs(pipe, name, config, prior, 5, max_sequence_length=0)
    pipe.scheduler = kept
    assert close(ours(prior, 5), expected) and pipeline.notes(5) == ()


def test_a_folder_that_is_loaded_says_how_it_is_sampled(
    sd_folder: Path, sd3_folder: Path, tmp_path: Path, change_json: Any
) -> None:
    folder = shutil.copytree(sd_folder, tmp_path / "turbo")
    file = folder / "scheduler/scheduler_config.json"
    change_json(file, timestep_spacing="trailing")
    assert grid_of(load_sd(folder), SampleConfig(steps=1)).times.tolist() == [1.0, 0.0], "pure noise is asked about"
    change_json(file, rescale_betas_zero_snr=True)
    with pytest.raises(PriorError, match="ends at alpha = 0, where eps says nothing"):
        load_sd(folder)
    change_json(file, prediction_type="v_prediction")
    prior = load_sd(folder)
    assert prior.kind == "v" and prior.schedule(torch.ones(1)).alpha == 0
    flow = shutil.copytree(sd3_folder, tmp_path / "dynamic")
    change_json(flow / "scheduler/scheduler_config.json", use_dynamic_shifting=True, base_shift=0.5, max_shift=0.5)
    assert load_sd3(flow).time_shift == pytest.approx(1.6487, abs=1e-4)
    assert load_sd(folder, kind="flow").time_shift == 1, "InstaFlow's config is that of the model it comes from"
    change_json(file, _class_name="FlowMatchEulerDiscreteScheduler", shift=2.0)
    assert load_sd(folder, kind="flow").time_shift == 2


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("PNDMScheduler", {}, "PNDMScheduler: its steps are taken by DDIM"),
        ("UniPCMultistepScheduler", {}, r"taken by DPM-Solver\+\+\(2M\)"),
        ("LMSDiscreteScheduler", {}, "LMSDiscreteScheduler: not one of ours; DDIM takes the steps"),
        ("FlowMatchEulerDiscreteScheduler", {}, "does not fit the prior's path; DDIM takes the steps"),
        (DPM, {"use_flow_sigmas": True}, "does not fit the prior's path"),
        ("DDIMScheduler", {"thresholding": True}, "thresholding=True: left out; sample.limit"),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, "where the next one asks"),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, "where the next one asks"),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, r"algorithm_type=sde-dpmsolver\+\+: dpmsolver\+\+ is used"),
        (DPM, {"solver_order": 3}, "solver_order=3: order 2 is used"),
        (DPM, {"final_sigmas_type": "sigma_min"}, "lower_order_final"),
    ],
)
def test_what_a_config_asks_for_and_does_not_get_is_said(
    name: str, config: dict[str, Any], words: str, sd: SDPrior, tmp_path: Path, caplog: Any
) -> None:
    from threestudio_rf.app.console import LOG

    LOG.propagate = True
    prior = stable(sd, tmp_path, name, BETAS | config)
    with caplog.at_level("INFO"):
        made = plan(prior, "a red mushroom", SampleConfig(steps=7, cfg=1.0))
    *_, last = run(made, [0])
    assert bool(last.x.isfinite().all())
    assert re.search(words, caplog.text)
    caplog.clear()
    with caplog.at_level("INFO"):
        plan(prior, "a red mushroom", SampleConfig(steps=7, cfg=1.0, sampler="ddim", spacing="leading"))
    assert not re.search(words, caplog.text), "not where something else was asked for"


def test_a_config_whose_times_mean_something_else_is_refused_by_its_key(sd: SDPrior, tmp_path: Path) -> None:
    prior = stable(sd, tmp_path, EULER, BETAS | V | {"timestep_type": "continuous"})
    with pytest.raises(UserError, match='timestep_type is "continuous", expected discrete'):
        grid_of(prior, SampleConfig(steps=4))
    prior = stable(sd, tmp_path, EULER, BETAS | {"timestep_spacing": "sideways"})
    with pytest.raises(UserError, match="sideways is not supported"):
        grid_of(prior, SampleConfig(steps=4))
    prior = stable(sd, tmp_path, "DDIMScheduler", BETAS | {"timestep_spacing": "Trailing"})
    with pytest.raises(
        UserError, match=r'config\.json: timestep_spacing is "Trailing", expected leading or trailing or'
    ):
        grid_of(prior, SampleConfig(steps=4))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (EULER, {"use_karras_sigmas": True, "use_exponential_sigmas": True}),
        (EULER, {"use_karras_sigmas": True, "sigma_min": "x"}),
        (EULER, {"interpolation_type": "cubic"}),
        (EULER, {"timestep_spacing": 5}),
        (DPM, {"final_sigmas_type": "none"}),
        (DPM, {"lambda_min_clipped": "x"}),
        (DPM, {"use_karras_sigmas": True, "beta_end": 0.00085}),
        ("DDIMScheduler", {"timestep_spacing": ["leading"]}),
    ],
)
def test_a_broken_config_is_refused_with_its_file(
    name: str, config: dict[str, Any], sd: SDPrior, tmp_path: Path
) -> None:
    prior = stable(sd, tmp_path, name, BETAS | config)
    try:
        made = grid_of(prior, SampleConfig(steps=5))
    except UserError as error:
        assert "scheduler_config.json" in str(error)
    else:
        assert bool((made.times.diff() < 0).all())


@pytest.mark.parametrize(
    "config",
    [
        {"use_dynamic_shifting": True, "base_image_seq_len": 4096},
        {"shift_terminal": 1.0},
        {"shift_terminal": 2.0},
        {"use_beta_sigmas": True, "use_karras_sigmas": True},
        {"_class_name": DPM, **FLOW, "use_karras_sigmas": True},
    ],
)
def test_a_broken_config_of_a_flow_is_refused_with_its_file(config: dict[str, Any], tmp_path: Path) -> None:
    file = written(tmp_path, "FlowMatchEulerDiscreteScheduler", config)
    with pytest.raises(PriorError, match=r"scheduler_config\.json"):
        Scheduler(Table(file), None, tokens=16).times(5, sampler="dpmpp_2m" if DPM in config.values() else "euler")


def test_every_scheduler_that_is_known_is_one_of_diffusers_with_a_sampler_of_ours() -> None:
    import diffusers

    from threestudio_rf.core.solve import STEPS

    assert all(hasattr(diffusers, name) and row.sampler in STEPS for name, row in ROWS.items())
