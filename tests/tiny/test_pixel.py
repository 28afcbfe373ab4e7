"""The prior without a first stage: its loss against its law, its text against the pipeline, and what two steps leave.

Seen to fail: the weight without its square, noise of deviation 1, padding heard by the transformer, the text of the
first token.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from threestudio_rf.core.random import generator, normal
from threestudio_rf.distill.method import METHODS, distill
from threestudio_rf.priors.adapters.load import load_adapted
from threestudio_rf.priors.adapters.prx_pixel import ADAPTER
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.folder import architecture_prx
from threestudio_rf.priors.folder.architecture import copy_weights
from threestudio_rf.tiny.train.data.latents import CaptionedLatents, Latents
from threestudio_rf.tiny.train.denoise import WORDS, DenoisePart
from threestudio_rf.tiny.train.parts import run_part
from threestudio_rf.tiny.train.pixel import OBJECTIVE, Text, ask_prx, draw_pixel, fresh_pixel


class Half(nn.Module):
    """Says half of what it is given, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, *, hidden_states: Tensor, timestep: Tensor, **told: Tensor) -> tuple[Tensor]:
        self.x_t, self.t, self.mask = hidden_states, timestep, told["attention_mask"]
        return (self.scale * hidden_states,)


def test_the_loss_is_that_of_the_pipelines_velocity_in_units_of_its_noise() -> None:
    _, encoder, tokenizer = fresh_pixel()
    n, network = 64, Half()
    label = torch.zeros(n, dtype=torch.long)
    pictures = torch.rand(n, 3, 16, 16, generator=generator(0, 0, "pictures")).half() * 2 - 1
    data = CaptionedLatents(Latents(pictures, label, label, label, label, torch.arange(n)), [tokenizer])
    options = {"objective": OBJECTIVE, "batch": 256, "ask": ask_prx, "times": draw_pixel, "autocast": False}
    part = DenoisePart("pixel", network, Text(encoder, tokenizer.eos_token_id), data, **options)
    loss, figures = part.loss(0, generator(0, 0, "loss"))
    draw = generator(0, 0, "loss")
    x0, t = data.draw(256, draw).x0, draw_pixel(256, draw).label
    heard = network.mask.sum(1)
    assert network.mask[:, :2].all() and heard.min() == 2 and 5 < heard.max() < 16 and network.mask.shape == (256, 16)
    assert torch.equal(network.t, t) and 0.5 < t.median() < 0.8 and t.min() < 0.2
    eps = torch.randn(x0.shape, generator=draw)
    t = t[:, None, None, None]
    torch.testing.assert_close(network.x_t, (1 - t) * x0 + 2 * t * eps)
    wrong = ((network.x_t / 2 - network.x_t) - (x0 - network.x_t)) / t.clamp(min=0.05) / 2
    assert (loss - WORDS * figures["words"]).item() == pytest.approx(wrong.square().mean().item(), rel=1e-3)


def test_two_steps_leave_a_prior_that_hears_as_it_was_taught_samples_and_guides(tmp_path: Path) -> None:
    run_part("pixel", tmp_path, steps=2, batch=2, per_shape=1, report=lambda _: None)
    prior = load_adapted(ADAPTER, tmp_path / "tiny-pixel")
    assert prior.latent_shape == (3, 64, 64) and prior.pipeline.time_shift == 1.5
    assert prior.fits("a red ball, side view") and not prior.fits("a red ball, " * 5)
    _, encoder, tokenizer = fresh_pixel()
    texts = ["a red ball, side view", ""]
    copy_weights(encoder, tmp_path / "tiny-pixel/text_encoder")
    ids = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    told, heard = Text(encoder.eval(), tokenizer.eos_token_id)(ids), prior.embed(texts)
    assert torch.equal(told.mask, heard.tensors["mask"]) and told.mask.sum(1).tolist() == [8, 2]
    torch.testing.assert_close(told.last_hidden_state[told.mask], heard.tensors["prompt"][told.mask])
    assert torch.equal(told.pooler_output[0], told.last_hidden_state[0, 7])
    model = bind(prior, {"cond": heard.select([0]), "uncond": heard.select([1])})
    start = normal((1, *prior.latent_shape), generator(0, 0, "x"))
    found = model.field(2.0).hats(2 * start, torch.ones(1))
    assert prior.decode(found.x0).isfinite().all()
    picture = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "p")).requires_grad_()
    t, noise = torch.full((1,), 0.5), generator(0, 0, "noise")
    distill(prior.encode(picture), model, t, method=METHODS["rfds"], generator=noise).loss.backward()
    assert picture.grad is not None and picture.grad.isfinite().all() and picture.grad.abs().sum() > 0


def test_a_text_encoder_whose_heads_do_not_share_its_width_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        architecture_prx.make_qwen(fresh_pixel()[2], width=72)
