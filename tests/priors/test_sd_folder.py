"""What an SD folder says and what it does not: kind, levels, licence, and networks that are no SD. Schedulers of
diffusers are the oracles.

Seen to fail: v read as eps; the last level always clean, or clean for PNDM; the label k + 1; trained_betas, zero SNR,
foreign inputs of the network and SDXL's second encoder not looked at; the class of model_index.json trusted; a safety
checker looked at; licences exchanged.
"""

import shutil

import pytest
import torch

from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import Shape
from threestudio_rf.priors.sd import SDPrior, load_sd

TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")
SCHEDULER = "scheduler/scheduler_config.json"


def test_the_kind_is_what_the_scheduler_says_unless_it_is_asked_for(copied_sd, sd, sd_v, change_json):
    assert (sd.kind, sd_v.kind) == ("eps", "v")
    for said, kind in ((None, "eps"), ("v_prediction", "v"), ("sample", "x0")):
        change_json(copied_sd / SCHEDULER, prediction_type=said)
        assert load_sd(copied_sd).kind == kind
        assert load_sd(copied_sd, kind="flow").kind == "flow"
    assert load_sd(copied_sd, kind="eps").kind == "eps"
    change_json(copied_sd / SCHEDULER, prediction_type="flow_prediction")
    with pytest.raises(PriorError, match=r"prediction_type is 'flow_prediction', expected one of .*prior=instaflow"):
        load_sd(copied_sd)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta_schedule": "linear", "num_train_timesteps": 500, "set_alpha_to_one": True},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "linear", "trained_betas": [0.01, 0.02, 0.5], "num_train_timesteps": 3},
    ],
)
def test_levels_are_those_of_diffusers_scheduler(copied_sd, changes, change_json):
    from diffusers import DDIMScheduler

    change_json(copied_sd / SCHEDULER, **changes)
    scheduler, prior = DDIMScheduler.from_pretrained(copied_sd / "scheduler"), load_sd(copied_sd)
    count = len(scheduler.alphas_cumprod)
    t = torch.arange(count + 1, dtype=torch.float64) / count
    wanted = torch.cat([scheduler.final_alpha_cumprod[None], scheduler.alphas_cumprod])
    level = prior.schedule(t)
    torch.testing.assert_close(level.alpha.float(), wanted.sqrt(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(level.sigma.float(), (1 - wanted).sqrt(), rtol=1e-4, atol=1e-5)
    assert torch.equal(prior.label(t), torch.arange(-1, count).clamp(min=0))


def test_the_last_level_is_diffusers_own_where_the_config_does_not_say(copied_sd, change_json):
    import diffusers

    for name in ("DDIMScheduler", "PNDMScheduler"):
        change_json(copied_sd / SCHEDULER, _class_name=name, set_alpha_to_one=None)
        scheduler = getattr(diffusers, name).from_pretrained(copied_sd / "scheduler")
        alpha = load_sd(copied_sd).schedule(torch.zeros(1)).alpha
        torch.testing.assert_close(alpha[0], scheduler.final_alpha_cumprod.sqrt())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rescale_betas_zero_snr": True}, "alpha = 0"),
        ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, "alpha = 0"),
        ({"trained_betas": [1.0, 0.1], "num_train_timesteps": 2}, r"each in \(0, 1\)"),
        ({"beta_schedule": "cubic"}, "unknown beta_schedule .*scaled_linear"),
        ({"beta_schedule": None}, "has no 'beta_schedule'"),
        ({"num_train_timesteps": None}, "num_train_timesteps"),
    ],
)
def test_tables_without_an_estimate_or_unknown_to_core_are_refused_but_for_flows(
    copied_sd, changes, words, change_json
):
    change_json(copied_sd / SCHEDULER, **changes)
    with pytest.raises(PriorError, match=words):
        load_sd(copied_sd)
    assert load_sd(copied_sd, kind="flow").schedule is rectified_flow


def test_only_a_flow_is_mirrored_and_wrong_kinds_are_refused(sd_folder, sd):
    for options in ({"mirror_time": True}, {"kind": "eps", "mirror_time": True}, {"kind": "velocity"}):
        with pytest.raises(PriorError, match="only a flow is mirrored"):
            load_sd(sd_folder, **options)
    for kind, table, mirror_time in (("flow", TABLE, False), ("eps", None, False), ("v", TABLE, True)):
        with pytest.raises(ValueError, match="expected a flow without a table"):
            SDPrior(sd.shape, sd.parts, sd.text, kind=kind, table=table, cache=sd.cache, mirror_time=mirror_time)


def test_the_adapter_shows_what_the_folder_and_its_kind_say(sd, instaflow, copied_sd, change_json):
    assert sd.latent_shape == (16, 8, 8) and sd.time_shift == 1.0 and (sd.name, instaflow.name) == ("sd", "instaflow")
    assert sd.shape == Shape(channels=16, size=8, patch=2, factor=8)
    assert "see the page" in sd.licence and "CC-BY-NC-4.0" in instaflow.licence
    for width, licence in ((768, "CreativeML OpenRAIL-M"), (1024, "OpenRAIL++-M")):
        change_json(copied_sd / "unet/config.json", cross_attention_dim=width)
        assert licence in load_sd(copied_sd).licence and "CC-BY-NC" in load_sd(copied_sd, kind="flow").licence
    assert load_sd(copied_sd, licence="mine").licence == "mine"


def test_a_folder_of_another_pipeline_class_loads_by_what_is_asked_for(copied_sd, sd_folder, change_json):
    change_json(copied_sd / "model_index.json", _class_name="RectifiedFlowPipeline")
    prior, other = load_sd(copied_sd, kind="flow"), load_sd(sd_folder, kind="flow")
    x, t = torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 8, 8), torch.tensor([0.3])
    assert torch.equal(prior.predict(x, t, prior.embed(["red"])), other.predict(x, t, other.embed(["red"])))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"addition_embed_type": "text_time"}, "more than latents, time and text: addition_embed_type"),
        ({"in_channels": 33}, "in_channels 33 for 16 of latents"),
        ({"in_channels": 4, "out_channels": 4}, "this VAE makes 16 latent channels, the network reads 4"),
        ({"sample_size": None}, "unet/config.json has no 'sample_size'"),
    ],
)
def test_networks_of_another_input_are_refused(copied_sd, changes, words, change_json):
    change_json(copied_sd / "unet/config.json", **changes)
    with pytest.raises(PriorError, match=words):
        load_sd(copied_sd)


def test_sdxl_is_no_sd(copied_sd, change_json):
    change_json(copied_sd / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(PriorError, match="use prior=sdxl"):
        load_sd(copied_sd)


def test_parts_that_an_adapter_does_not_need_are_never_opened(copied_sd, change_json):
    parts = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    parts |= {"feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": ["x", "Y"]}
    change_json(copied_sd / "model_index.json", **parts)
    (copied_sd / "safety_checker").mkdir()
    (copied_sd / "safety_checker/model.safetensors").write_bytes(b"broken")
    shutil.rmtree(copied_sd / "tokenizer")
    prior = load_sd(copied_sd)
    prior.load()
    with pytest.raises(PriorError, match="tokenizer is missing"):
        prior.embed(["red"])
