"""The SD adapter on a small random SD; StableDiffusionPipeline, its UNet, VAE and DDIMScheduler are the oracles.

Seen to fail: a flow's output not negated; the label k + 1; v read as eps; the last level always clean; VAE's shift
applied, its scale left out of decode; sample() for mode(); image clamped; hidden_states[-2]; the attention mask never
or always; an encoder kept; a warning per text; weights with gradients or in train mode; sizes unchecked; the network
loaded with the text; a straight path for eps.
"""

import gc
import weakref

import pytest
import torch

from threestudio_rf.core.guide import cfg, combine
from threestudio_rf.core.level import DiscreteVP, betas
from threestudio_rf.core.model import Field
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.distill.method import METHODS, Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.folder.load import load_part
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

PROMPTS = ["a red mushroom, front view", "", "a blue zebra"]
SCHEDULER = "scheduler/scheduler_config.json"
TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")


def normal(*shape, stream="x"):
    return torch.randn(*shape, generator=generator(0, 0, stream))


# Text


@torch.no_grad()
def test_conditions_equal_the_pipelines_bit_for_bit(sd, sd_pipe):
    condition = sd.embed([*PROMPTS, "red " * 30])
    assert list(condition.tensors) == ["prompt"] and condition.tensors["prompt"].shape == (4, 16, 16)
    for i, prompt in enumerate([*PROMPTS, "red " * 30]):
        tokens, _ = sd_pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(condition.tensors["prompt"][i], tokens[0])


@torch.no_grad()
def test_an_attention_mask_is_used_where_the_encoder_asks_for_it(copied_sd, sd, change_json):
    from diffusers import StableDiffusionPipeline

    change_json(copied_sd / "text_encoder/config.json", use_attention_mask=True)
    pipe = StableDiffusionPipeline.from_pretrained(copied_sd)
    tokens, _ = pipe.encode_prompt("a ball", "cpu", 1, do_classifier_free_guidance=False)
    assert torch.equal(load_sd(copied_sd).embed(["a ball"]).tensors["prompt"], tokens)
    assert not torch.equal(sd.embed(["a ball"]).tensors["prompt"], tokens)


def test_a_text_that_is_too_long_is_reported_once_with_its_cut_end(sd_folder):
    prior = load_sd(sd_folder)
    text = "red " * 13 + "ball mushroom arrow"
    assert prior.fits("red " * 14) and not prior.fits("red " * 15)
    words = r"16 tokens that CLIP reads; left out: 'mushroom arrow' \(and 1 more texts\)"
    with pytest.warns(UserWarning, match=words) as caught:
        prior.embed([text, "red", f"{text} red", text])
    assert len(caught) == 1


def test_the_text_encoder_is_not_loaded_with_the_network_nor_for_known_texts(sd_folder, tmp_path, monkeypatch):
    first = load_sd(sd_folder, cache=tmp_path)
    condition = first.embed([*PROMPTS, PROMPTS[0]])
    assert len(list(tmp_path.iterdir())) == len(PROMPTS) and not first.parts.loaded
    again = load_sd(sd_folder, cache=tmp_path)
    monkeypatch.setattr(type(again.text), "embed", lambda *args: pytest.fail("the text encoder was loaded"))
    again.load()
    assert torch.equal(again.embed([*PROMPTS, PROMPTS[0]]).tensors["prompt"], condition.tensors["prompt"])


@pytest.mark.parametrize(("load", "folder", "encoders"), [(load_sd, "sd_folder", 1), (load_sd3, "sd3_folder", 2)])
def test_text_encoders_are_gone_when_the_texts_are_embedded(load, folder, encoders, request, monkeypatch):
    seen = []

    def watched(cls, folder, **options):
        part = load_part(cls, folder, **options)
        assert not [one for one in seen if one() is not None], "two encoders at once"
        seen.append(weakref.ref(part))
        return part

    monkeypatch.setattr("threestudio_rf.priors.text.load_part", watched)
    load(request.getfixturevalue(folder)).embed(PROMPTS)
    gc.collect()
    assert len(seen) == encoders and [one() for one in seen] == [None] * encoders


# Prediction


@torch.no_grad()
def test_predictions_are_the_unets_own_and_a_flows_are_negated(sd, sd_v, instaflow, sd_pipe):
    x, condition = normal(3, 16, 8, 6), sd.embed(PROMPTS)
    text = condition.tensors["prompt"]
    k = torch.tensor([0, 333, 999])
    t = (k + 1) / 1000
    wanted = sd_pipe.unet(x, k, encoder_hidden_states=text).sample
    assert torch.equal(sd.predict(x, t, condition), wanted) and torch.equal(sd_v.predict(x, t, condition), wanted)
    wanted = sd_pipe.unet(x, 1000 * t, encoder_hidden_states=text).sample
    assert torch.equal(instaflow.predict(x, t, condition), -wanted)
    assert (wanted - sd_pipe.unet(x, 1000 * (1 - t), encoder_hidden_states=text).sample).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["sd", "sd_v"])
@torch.no_grad()
def test_steps_of_the_solver_are_those_of_diffusers_ddim(kind, request, sd_v_folder, sd_folder):
    from diffusers import DDIMScheduler

    prior = request.getfixturevalue(kind)
    scheduler = DDIMScheduler.from_pretrained({"sd": sd_folder, "sd_v": sd_v_folder}[kind] / "scheduler")
    scheduler.set_timesteps(4)
    condition, x = prior.embed(["a red ball"]).expand(2), normal(2, 16, 8, 8)
    text, theirs = condition.tensors["prompt"], x
    k = torch.cat([scheduler.timesteps, torch.tensor([-1])])  # the step of 250 from index 1 ends before the table
    ours = solve(Field(lambda x, t: prior.predict(x, t, condition), prior.kind, prior.schedule), x, (k + 1) / 1000)
    for index, state in zip(scheduler.timesteps, ours, strict=True):
        out = prior.parts.network(theirs, index, encoder_hidden_states=text).sample
        theirs = scheduler.step(out, index, theirs).prev_sample
        torch.testing.assert_close(state, theirs, rtol=1e-4, atol=1e-4)
    assert (state - x).abs().mean() > 0.1


def test_sampling_with_guidance_equals_the_pipelines(sd, sd_pipe):
    x, scale = normal(2, 16, 8, 8), 5.0
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": scale, "output_type": "latent"}
    theirs = sd_pipe(PROMPTS[:1] * 2, latents=x, negative_prompt=["blue"] * 2, **options).images
    predict = bind(sd, {"cond": sd.embed(PROMPTS[:1]), "uncond": sd.embed(["blue"])})

    def field(x, t):
        return combine(predict(x, t, ["uncond", "cond"]), cfg(scale))

    times = (torch.tensor([751, 501, 251, 1, -1]) + 1) / 1000
    *_, ours = solve(Field(field, sd.kind, sd.schedule), x, times)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd_v", "instaflow"])
def test_a_batch_is_its_samples_and_predictions_are_finite_at_both_ends(name, request):
    prior = request.getfixturevalue(name)
    predict = bind(prior, {"cond": prior.embed(PROMPTS[:1]), "uncond": prior.embed([""])})
    x, t = normal(4, 16, 8, 4), torch.tensor([0.0, 0.02, 0.98, 1.0])
    both = predict(x, t, ["cond", "uncond"])
    for role in both:
        assert both[role].shape == x.shape and both[role].isfinite().all() and both[role].dtype == torch.float32
        for i in range(4):
            alone = predict(x[i : i + 1], t[i : i + 1], [role])[role]
            torch.testing.assert_close(alone, both[role][i : i + 1], rtol=1e-4, atol=1e-5)
    assert (both["cond"] - both["uncond"]).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["sd", "sd_v", "instaflow", "sd3"])
def test_rfds_and_sds_of_one_network_differ_by_a_weight_of_t_only(name, request):
    prior = request.getfixturevalue(name)
    predict = bind(prior, {"cond": prior.embed(PROMPTS[:1]), "uncond": prior.embed([""])})
    x0, t = normal(3, 16, 8, 6), torch.tensor([0.1, 0.5, 0.9])
    level = prior.schedule(t)

    def gradient(space):
        out = distill(x0, predict, t, method=Method(space=space, scale=7.0), generator=generator(0, 0, "noise"))
        return out.grad

    ratio = ((level.alpha + level.sigma) / level.alpha)[:, None, None, None]
    torch.testing.assert_close(gradient("flow"), ratio * gradient("eps"), rtol=1e-3, atol=1e-7)


# First stage


@torch.no_grad()
def test_encoding_and_decoding_are_the_pipelines_and_know_no_shift(sd, sd_pipe):
    image = torch.rand(2, 3, 64, 48, generator=generator(0, 0, "image"))
    posterior = sd_pipe.vae.encode(2 * image - 1).latent_dist
    assert torch.equal(sd.encode(image), posterior.mode() * sd_pipe.vae.config.scaling_factor)
    drawn = sd.encode(image, generator(0, 0, "posterior"))
    assert torch.equal(drawn, posterior.sample(generator(0, 0, "posterior")) * 1.5)
    assert (drawn - sd.encode(image)).abs().max() > 1e-3 and drawn.shape == (2, 16, 8, 6)
    shown = sd_pipe.vae.decode(drawn / 1.5, return_dict=False)[0]
    assert torch.equal(sd.decode(drawn), sd_pipe.image_processor.postprocess(shown, output_type="pt"))


def test_only_the_image_gets_a_gradient_also_outside_of_0_and_1(sd):
    image = (3 * torch.rand(1, 3, 32, 48, generator=generator(0, 0, "image")) - 1).requires_grad_()
    predict = bind(sd, {"cond": sd.embed(PROMPTS[:1]), "uncond": sd.embed([""])})
    settings = {"generator": generator(0, 0, "noise")}
    distill(sd.encode(image), predict, torch.tensor([0.5]), method=METHODS["sds"], **settings).loss.backward()
    outside = (image < 0) | (image > 1)
    assert outside.any() and image.grad[outside].abs().gt(0).double().mean() > 0.99
    for module in (sd.parts.network, sd.parts.vae):
        assert not module.training
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_sizes_that_do_not_fit_are_errors(sd):
    for size in ((60, 64), (64, 72)):
        with pytest.raises(ValueError, match="multiples of 16"):
            sd.encode(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="multiples of 2"):
        sd.predict(torch.zeros(1, 16, 8, 7), torch.zeros(1), sd.embed([""]))
    with pytest.raises(ValueError, match=r"expected \(B, 16, H, W\)"):
        sd.predict(torch.zeros(1, 4, 8, 8), torch.zeros(1), sd.embed([""]))


def test_float16_on_a_cpu_becomes_float32_and_bfloat16_is_obeyed(sd_folder):
    with pytest.warns(UserWarning, match="float32 is used"):
        assert load_sd(sd_folder, dtype=torch.float16).text.dtype == torch.float32
    half = load_sd(sd_folder, dtype=torch.bfloat16)
    out = half.predict(normal(1, 16, 8, 8), torch.tensor([0.5]), half.embed(["red"]))
    assert half.parts.network.dtype == half.parts.vae.dtype == torch.bfloat16 and out.dtype == torch.float32
