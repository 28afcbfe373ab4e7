"""Losses of the embedded UNets, and the reflow.

Seen to fail: target of the flow without its sign; label k + 1; `exp(logvar)` instead of exp(-logvar); the variational
weight left out; the simple loss of l1 squared; noise of the pairs ignored; the chord of `follow` reversed;
captions of `judged_share` not compared, latents not scaled back.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from threestudio_rf.core.convert import join, noise
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder import architecture, architecture_sd
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.train.data.captions import CaptionTable, caption, told
from threestudio_rf.tiny.train.data.latents import CaptionedLatents, Latents
from threestudio_rf.tiny.train.denoise import (
    WORDS,
    DenoisePart,
    Heard,
    Objective,
    sample_error,
    table,
    teach_words,
    weigh,
)
from threestudio_rf.tiny.train.reflow import follow
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.train.unet import judged_share
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, VOCABULARY, WORDINGS, palette, random_world


class Recorder(nn.Module):
    """A network that returns a given map of what it hears, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.heard: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, label: Tensor, hidden: Tensor) -> SimpleNamespace:
        self.heard.append((x_t, label))
        return SimpleNamespace(sample=self.scale * x_t)


class Words(nn.Module):
    config = SimpleNamespace(hidden_size=4)

    def forward(self, ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.zeros(len(ids), 1, 4), pooler_output=torch.zeros(len(ids), 4))


def captioned(n: int = 3, channels: int = 2) -> CaptionedLatents:
    draw = generator(0, 0, "latents")
    label = torch.arange(n) % 2
    data = Latents(torch.randn(n, channels, 4, 4, generator=draw).half(), label, label, label, label, torch.arange(n))
    return CaptionedLatents(data, [architecture.make_tokenizer(["red", "ball"])])


def recorded(kind: str, **other: object) -> tuple[DenoisePart, Tensor]:
    """A part with a network that returns zero, and its loss."""
    part = DenoisePart("x", Recorder(), Words(), captioned(), objective=Objective(kind=kind, **other), batch=64)  # type: ignore[arg-type]
    return part, error_of(part)


def error_of(part: DenoisePart) -> Tensor:
    """The loss of a batch without what the text encoder owes."""
    loss, figures = part.loss(0, generator(1, 1, "loss"))
    return loss - WORDS * figures["words"]


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_the_network_hears_the_index_whose_level_made_its_input(kind: str) -> None:
    part, loss = recorded(kind)
    x_t, label = part.unet.heard[0]
    draw = generator(1, 1, "loss")
    x0, *_ = part.data.draw(64, draw)
    k = torch.randint(1000, (64,), generator=draw)
    eps = torch.randn(x0.shape, generator=draw)
    abar = DiscreteVP(betas("scaled_linear", 1000)).abar[k].float()[:, None, None, None]
    assert torch.equal(label, k)
    assert torch.allclose(x_t, abar.sqrt() * x0 + (1 - abar).sqrt() * eps, atol=1e-6)
    wanted = {"x0": x0, "eps": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[kind]
    assert loss.item() == pytest.approx(wanted.square().mean().item(), rel=1e-5)


def test_a_flow_hears_a_thousand_t_and_learns_data_minus_noise() -> None:
    part, _ = recorded("flow")
    x_t, label = part.unet.heard[0]
    draw = generator(1, 1, "loss")
    x0, *_ = part.data.draw(64, draw)
    t = torch.rand(64, generator=draw)
    eps = torch.randn(x0.shape, generator=draw)
    assert torch.allclose(x_t, noise(x0, eps, rectified_flow(t)), atol=1e-6) and torch.allclose(label, 1000 * t)
    part.unet.scale.data.fill_(1.0)
    loss = error_of(part)
    assert loss.item() == pytest.approx((x_t - (x0 - eps)).square().mean().item(), rel=1e-4)


def test_the_text_encoder_owes_every_word_that_a_caption_says() -> None:
    last = torch.randn(6, 8, generator=generator(0, 1, "heard"), requires_grad=True)
    heard, said = Heard(8), torch.tensor([[1, 2, 9], [3, -1, 5], [-1, -1, -1], [0, 4, -1], [7, 7, 7], [2, 2, 2]])
    loss = heard(last, said)
    logs = [head(last).log_softmax(1) for head in heard.heads]
    pairs = [
        (row, i, label) for row, labels in enumerate(said.tolist()) for i, label in enumerate(labels) if label >= 0
    ]
    terms = [-logs[i][row, label] for row, i, label in pairs]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    loss.backward()
    assert last.grad[2].abs().sum() == 0 and (last.grad[[0, 1, 3, 4, 5]].abs().sum(1) > 0).all()
    assert heard(last, torch.full((6, 3), -1)).item() == 0


def test_a_caption_says_what_its_template_names() -> None:
    index = torch.arange(6), torch.full((6,), 3), torch.full((6,), 4), torch.full((6,), 5)
    for number, row in enumerate(told(*index).tolist()):
        text = caption(number, 3, 4, 5)
        names = list(SHAPES)[3], list(COLOURS)[4], f"{WORDINGS[5]} view"
        assert [label >= 0 for label in row] == [name in text for name in names]
        assert all(label in (-1, wanted) for label, wanted in zip(row, (3, 4, 5), strict=True))


def test_pairs_keep_the_noise_they_were_made_from() -> None:
    noises = torch.randn(3, 2, 4, 4, generator=generator(0, 0, "noises")).half()
    objective = Objective(kind="flow")
    part = DenoisePart("x", Recorder(), Words(), captioned(), objective=objective, batch=64, noises=noises)
    part.loss(0, generator(1, 1, "loss"))
    x_t, label = part.unet.heard[0]
    rows = part.data.draw(64, generator(1, 1, "loss")).rows
    x0 = part.data.data.latent[rows].float()
    assert torch.allclose(x_t, noise(x0, noises[rows].float(), rectified_flow(label / 1000)), atol=1e-5)


def test_errors_are_means_per_sample() -> None:
    difference = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    zero = torch.zeros(2, 2)
    assert sample_error(difference, zero, "l1").tolist() == [2, 1]
    assert sample_error(difference, zero, "l2").tolist() == [5, 2]


def test_the_loss_is_simple_plus_variational_with_the_learned_variance() -> None:
    error, logvar, weight = torch.tensor([2.0, 4.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25])
    objective = Objective(simple=1.0, elbo=2.0)
    first = 2 + 0 + 2 * 0.5 * 2
    second = 4 / torch.e + 1 + 2 * 0.25 * 4
    assert weigh(error, logvar, weight, objective).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_the_learned_log_variance_settles_at_the_logarithm_of_the_error() -> None:
    error = torch.tensor([0.3])
    best = torch.tensor([0.3]).log().requires_grad_()
    weigh(error, best, torch.zeros(1), Objective(learn_logvar=True)).backward()
    assert best.grad.abs().item() < 1e-6


def test_the_variational_weights_make_the_error_a_divergence_of_gaussians() -> None:
    process = table()
    k = torch.tensor([400])
    draw = generator(2, 2, "kl")
    x0, eps, guess = (torch.randn(1, 5, generator=draw, dtype=torch.float64) for _ in range(3))
    x_k = process.q_sample(x0, k, eps)
    true = process.posterior(x0, x_k, k)
    model = process.p_mean_variance(guess, x_k, k, kind="eps").previous
    divergence = ((true.mean - model.mean).square() / (2 * true.variance)).mean()
    assert (process.lvlb_weights("eps")[k] * (eps - guess).square().mean()).item() == pytest.approx(divergence.item())


def test_a_learned_variance_is_trained_only_when_asked_for() -> None:
    assert "logvar" in recorded("eps", learn_logvar=True)[0].modules and "logvar" not in recorded("eps")[0].modules


def test_unknown_norms_and_variational_flows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected l1 or l2"):
        Objective(norm="huber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 0"):
        Objective(kind="flow", elbo=1.0)


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_a_unet_learns_a_single_latent(kind: str, tmp_path) -> None:
    tokenizer = architecture.make_tokenizer(["red", "ball"])
    encoder = architecture_sd.make_sd_text_encoder(tokenizer, width=8, layers=1, heads=1)
    unet = architecture_sd.make_unet(8, channels=(8, 8), latent_channels=2, sample_size=4, groups=4)
    objective = Objective(kind=kind)  # type: ignore[arg-type]
    part = DenoisePart("x", unet, encoder, captioned(1), objective=objective, batch=16, autocast=False)
    before = part.loss(0, generator(9, 9, "check"))[0].item()
    for _ in train(part, Schedule(steps=25, lr=2e-2, ema=0.5), tmp_path, report=lambda _: None):
        pass
    assert part.loss(0, generator(9, 9, "check"))[0].item() < 0.7 * before


def test_a_straight_flow_has_no_bend_and_one_step_ends_where_twenty_do() -> None:
    start = torch.randn(6, 2, 3, 3, generator=generator(0, 0, "start"))
    reached = 0.3

    def straight(x: Tensor, t: Tensor) -> Tensor:  # the flow of the coupling x0 = 0.3 eps
        share = (t + (1 - t) * reached)[:, None, None, None]
        return x / share * (1 - reached)

    path = follow(straight, start, 20)
    assert path.straightness.max() < 1e-10 and torch.allclose(path.sample, reached * start, atol=1e-5)
    assert torch.allclose(follow(straight, start, 1).sample, path.sample, atol=1e-5)


def test_the_independent_coupling_of_gaussians_bends_as_its_closed_form_says() -> None:
    start = torch.randn(4, 1, 2, 2, generator=generator(0, 1, "start"), dtype=torch.float64)
    deviation = 0.2

    def marginal(x: Tensor, t: Tensor) -> Tensor:  # u = E[eps - x0 | x_t] for x0 ~ N(0, deviation^2)
        spread = (1 - t) ** 2 * deviation**2 + t**2
        return x * ((t - (1 - t) * deviation**2) / spread)[:, None, None, None]

    path = follow(marginal, start, 400)
    t = torch.linspace(1, 0, 4001, dtype=torch.float64)[:-1]
    root = ((1 - t) ** 2 * deviation**2 + t**2).sqrt()  # the path is x_t = root(t) eps
    slope = (t - (1 - t) * deviation**2) / root
    bend = (1 - deviation - slope).square().mean()
    assert torch.allclose(path.straightness, bend * start.square().flatten(1).mean(1), rtol=0.03)
    assert torch.allclose(join("x0", path.sample, start, rectified_flow(torch.ones(4))), deviation * start, atol=5e-3)


def test_true_pictures_are_judged_right_under_their_own_captions_only() -> None:
    vae = architecture.load_vae(weights_folder() / "tiny-sd3/vae").eval()
    world = random_world(3, 12)
    world = world.select(world.shape < load_judge(weights_folder()).sizes[0])
    colour = torch.arange(len(world.shape)) % 10
    image = world.images(palette()[colour], torch.full((len(colour), 3), 0.7))
    captions = torch.stack((world.shape, colour, world.view), dim=1)
    with torch.no_grad():
        latents = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
        judge, seen = load_judge(weights_folder()), []
        judge.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        assert judged_share(judge, vae, latents, captions) > 0.9
        assert judged_share(judge, vae, latents, captions.roll(3, 0)) < 0.1
    assert (torch.cat(seen)[: len(image)] - image).square().mean() < 0.0008


def test_a_text_encoder_is_taught_its_words_before_any_picture() -> None:
    tokenizer = architecture.make_tokenizer([word for word in VOCABULARY if word.isalpha()])
    encoder = architecture_sd.make_sd_text_encoder(tokenizer, width=48, layers=1, seed=3)
    with architecture.seeded(0):
        heard = Heard(48)
    options = {"table": CaptionTable(tokenizer), "seed": 0, "batch": 64}
    before = teach_words(encoder, heard, steps=1, **options)
    assert teach_words(encoder, heard, steps=80, **options) < 0.5 * before
