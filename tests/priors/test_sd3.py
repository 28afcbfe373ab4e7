"""The SD3 adapter on a small random SD3; StableDiffusion3Pipeline and AutoencoderKL are the oracles.

Mutations tried, each seen to fail: label 1000 (1 - t); label rounded to float16; hidden_states[-1]; order of the two
encoders; 256 zero tokens appended; scale and shift exchanged; sample() for mode(); output negated; image clamped.
"""

import json
from types import SimpleNamespace

import pytest
import torch

from threestudio_rf.core.guide import cfg, combine
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.model import Field, Model
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import solve
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.priors.base import Condition, bind
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.folder.layout import Shape
from threestudio_rf.priors.sd3 import SD3Prior, load_sd3

PROMPTS = ["a red mushroom, front view", "", "a blue zebra"]


def normal(*shape, stream="x"):
    return torch.randn(*shape, generator=generator(0, 0, stream))


def test_conditions_equal_the_pipelines_bit_for_bit(sd3, pipe):
    condition = sd3.embed(PROMPTS)
    assert condition.tensors["prompt"].shape == (3, 16, 40) and condition.tensors["pooled"].shape == (3, 24)
    for i, prompt in enumerate(PROMPTS):
        tokens, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        assert torch.equal(condition.tensors["prompt"][i], tokens[0])
        assert torch.equal(condition.tensors["pooled"][i], pooled[0])


def test_without_a_stated_length_zero_tokens_are_appended_like_the_pipelines(sd3_folder, pipe):
    condition = load_sd3(sd3_folder, max_sequence_length=7).embed(PROMPTS[:1])
    tokens = pipe.encode_prompt(PROMPTS[0], None, None, do_classifier_free_guidance=False, max_sequence_length=7)[0]
    assert torch.equal(condition.tensors["prompt"], tokens) and tokens.shape[1] == 23


def add_t5(folder):
    """A small T5 in the folder, as `text_encoder_3` of model_index.json, as wide as the network's text input."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghijklmnopr")]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder / "tokenizer_3")
    config = T5Config(vocab_size=len(pieces), d_model=40, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))


@torch.no_grad()
def test_with_t5_conditions_equal_the_pipelines_and_t5_can_be_left_out(copied):
    from diffusers import StableDiffusion3Pipeline

    add_t5(copied)
    pipe = StableDiffusion3Pipeline.from_pretrained(copied)
    ours = load_sd3(copied, max_sequence_length=9).embed(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        tokens = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=9)[0]
        assert torch.equal(ours.tensors["prompt"][i], tokens[0]) and tokens[0, 16:].abs().min() > 0
    without = load_sd3(copied, max_sequence_length=9, t5=False).embed(PROMPTS).tensors["prompt"]
    assert torch.equal(without[:, :16], ours.tensors["prompt"][:, :16]) and without[:, 16:].eq(0).all()


def test_euler_sampling_equals_the_pipelines(sd3, pipe):
    x, scale = normal(2, 16, 8, 8), 5.0
    theirs = pipe(
        PROMPTS[:1] * 2,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=scale,
        latents=x,
        max_sequence_length=0,
        output_type="latent",
    ).images
    predict = bind(sd3, {"cond": sd3.embed(PROMPTS[:1]), "uncond": sd3.embed([""])})

    def field(x, t):
        return combine(predict(x, t, ["uncond", "cond"]), cfg(scale))

    *_, ours = solve(Field(field, sd3.kind, sd3.schedule), x, pipe.scheduler.sigmas)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - x).abs().mean() > 0.1
    shown = pipe.vae.decode(theirs / 1.5 + 0.1).sample
    torch.testing.assert_close(sd3.decode(ours), (shown / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_two_conditions_in_one_batch_are_two_calls_and_a_batch_is_its_samples(sd3):
    predict = bind(sd3, {"cond": sd3.embed(PROMPTS[:1]), "uncond": sd3.embed([""])})
    x, t = normal(3, 16, 8, 4), torch.tensor([0.0, 0.4, 1.0])
    both = predict(x, t, ["cond", "uncond"])
    for role in both:
        assert both[role].shape == x.shape and both[role].isfinite().all()
        torch.testing.assert_close(predict(x, t, [role])[role], both[role], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(predict(x[1:2], t[1:2], [role])[role], both[role][1:2], rtol=1e-4, atol=1e-5)
    assert (both["cond"] - both["uncond"]).abs().max() > 1e-4


class LabelNetwork(torch.nn.Module):
    """Returns its own label everywhere and remembers the labels it heard."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def forward(self, *, hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict):
        self.heard.append(timestep)
        return (timestep[:, None, None, None].expand_as(hidden_states),)


def stub():
    network = LabelNetwork()
    text = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    shape = Shape(channels=16, size=8, patch=2, factor=8)
    prior = SD3Prior(
        shape, SimpleNamespace(network=network, vae=None), text, cache=ConditionCache(None, "stub", "", "bfloat16")
    )
    return network, prior, Condition({"prompt": torch.zeros(1, 2, 4), "pooled": torch.zeros(1, 4)})


def test_guidance_and_sampler_tell_the_network_1000_t_in_float32():
    network, prior, condition = stub()
    predict = bind(prior, {"cond": condition, "uncond": condition})
    t = torch.tensor([0.0577, 0.3337, 0.9932])
    x = normal(3, 16, 8, 6)
    assert torch.equal(prior.predict(x, t, condition.expand(3))[:, 0, 0, 0], 1000 * t)
    distill(
        x, Model(predict, "flow", prior.schedule), t, method=METHODS["rfds_rev"], generator=generator(0, 0, "noise")
    )
    assert torch.equal(network.heard[-2], 1000 * t) and torch.equal(network.heard[-1], (1000 * t).repeat(2))
    times = torch.tensor([1.0, 0.75, 0.3337, 0.0])
    list(solve(Field(lambda x, t: predict(x, t, ["cond"])["cond"], "flow", rectified_flow), x, times))
    heard = torch.stack(network.heard[-3:])
    assert heard.dtype == torch.float32 and torch.equal(heard, 1000 * times[:3, None].expand(3, 3))


def test_encode_is_the_scaled_mode_or_a_sample_of_the_posterior(sd3, pipe):
    image = torch.rand(2, 3, 64, 48, generator=generator(0, 0, "image"))
    posterior = pipe.vae.encode(2 * image - 1).latent_dist
    torch.testing.assert_close(sd3.encode(image), (posterior.mode() - 0.1) * 1.5)
    drawn = sd3.encode(image, generator(0, 0, "posterior"))
    wanted = (posterior.sample(generator(0, 0, "posterior")) - 0.1) * 1.5
    torch.testing.assert_close(drawn, wanted)
    assert (drawn - sd3.encode(image)).abs().max() > 1e-3 and drawn.shape == (2, 16, 8, 6)


def test_only_the_image_gets_a_gradient_also_outside_of_0_and_1(sd3):
    image = (3 * torch.rand(1, 3, 32, 48, generator=generator(0, 0, "image")) - 1).requires_grad_()
    latents = sd3.encode(image)
    predict = bind(sd3, {"cond": sd3.embed(PROMPTS[:1]), "uncond": sd3.embed([""])})
    out = distill(
        latents,
        Model(predict, "flow", sd3.schedule),
        torch.tensor([0.5]),
        method=METHODS["rfds"],
        generator=generator(0, 0, "noise"),
    )
    out.loss.backward()
    outside = (image < 0) | (image > 1)
    assert outside.any() and image.grad[outside].abs().gt(0).double().mean() > 0.99
    for module in (sd3.parts.network, sd3.parts.vae):
        assert not module.training
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_sizes_that_do_not_fit_are_errors(sd3):
    for size in ((60, 64), (64, 72)):
        with pytest.raises(ValueError, match="multiples of 16"):
            sd3.encode(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match="multiples of 2"):
        sd3.predict(torch.zeros(1, 16, 8, 7), torch.zeros(1), sd3.embed([""]))


def test_what_the_folder_says_is_what_the_adapter_shows(sd3):
    assert sd3.latent_shape == (16, 8, 8) and sd3.kind == "flow" and sd3.time_shift == 3.0
    assert "Stability" in sd3.licence
    assert sd3.shape == Shape(channels=16, size=8, patch=2, factor=8)


def test_text_encoders_are_not_loaded_with_the_network_nor_for_known_texts(sd3_folder, tmp_path, monkeypatch):
    first = load_sd3(sd3_folder, cache=tmp_path)
    condition = first.embed([*PROMPTS, PROMPTS[0]])
    assert len(list(tmp_path.iterdir())) == len(PROMPTS) and not first.parts.loaded
    again = load_sd3(sd3_folder, cache=tmp_path)
    monkeypatch.setattr(type(again.text), "embed", lambda *args: pytest.fail("text encoders were loaded"))
    for name, tensor in again.embed([*PROMPTS, PROMPTS[0]]).tensors.items():
        assert torch.equal(tensor, condition.tensors[name])


def test_a_text_that_is_too_long_is_reported_once_with_its_cut_end(sd3_folder):
    prior = load_sd3(sd3_folder)
    text = "red " * 13 + "ball mushroom arrow"
    assert prior.fits("red " * 14) and not prior.fits("red " * 15)
    with pytest.warns(UserWarning, match="'mushroom arrow'") as caught:
        prior.embed([text, "red", text])
    assert len(caught) == 1


def test_float16_on_a_cpu_becomes_float32_and_bfloat16_is_obeyed(sd3_folder):
    with pytest.warns(UserWarning, match="float32 is used"):
        prior = load_sd3(sd3_folder, dtype=torch.float16)
    assert prior.text.dtype == torch.float32
    half = load_sd3(sd3_folder, dtype=torch.bfloat16)
    out = half.predict(normal(1, 16, 8, 8), torch.tensor([0.5]), half.embed(["red"]))
    assert half.parts.network.dtype == torch.bfloat16 and out.dtype == torch.float32
