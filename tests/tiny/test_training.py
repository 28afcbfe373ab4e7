"""Laws of the training of the embedded networks, on networks small enough for a test.

Seen to fail: the optimiser state not restored (resume); rows of the curve not cut back to the resumed step; data and
noise exchanged in the target of `FlowPart.loss`; the scale of latents divided by instead of multiplied with; the wide
posterior of the default initialisation; every view word counted as known.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder import architecture
from threestudio_rf.tiny.train.data.captions import TEMPLATES, CaptionTable, caption, draw_templates
from threestudio_rf.tiny.train.data.latents import CaptionedLatents, Latents, encode_world
from threestudio_rf.tiny.train.denoise import FlowPart, embed_tokens
from threestudio_rf.tiny.train.judging import JudgePart, judge_accuracy, soften, view_known
from threestudio_rf.tiny.train.parts import run_part
from threestudio_rf.tiny.train.ship import ship
from threestudio_rf.tiny.train.stage import (
    FirstStage,
    Sharpening,
    draw_images,
    latent_statistics,
    pyramid_start,
    reconstruction_psnr,
)
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.world.judge import Judge
from threestudio_rf.tiny.world.views import VOCABULARY, Views, random_world


class Line:
    """Fit y = 3 x + 1 from noisy batches."""

    name = "line"

    def __init__(self) -> None:
        with architecture.seeded(0):
            self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(16, 1, generator=draw)
        return (self.modules["line"](x) - 3 * x - 1).square().mean(), {"x": x.mean().item()}


def weights_after(folder: Path, stops: tuple[int, ...], save_seconds: float = 0) -> dict[str, Tensor]:
    schedule = Schedule(steps=60, lr=0.05, save_seconds=save_seconds, log_every=5)
    for stop in stops:
        part = Line()
        for step in train(part, schedule, folder, report=lambda _: None):
            if step + 1 == stop:
                break
    return {name: value.clone() for name, value in part.modules.state_dict().items()}


def test_a_training_that_is_stopped_twice_ends_bit_equal(tmp_path: Path) -> None:
    whole = weights_after(tmp_path / "a", (60,))
    parts = weights_after(tmp_path / "b", (7, 31, 60))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_curve_of_a_resumed_training_has_every_row_once(tmp_path: Path) -> None:
    weights_after(tmp_path, (12, 60), save_seconds=1e9)
    rows = (tmp_path / "line.csv").read_text().splitlines()
    steps = [int(float(row.split(",")[0])) for row in rows[1:]]
    assert steps == list(range(4, 60, 5))


def test_training_learns_and_ends_with_the_averaged_weights(tmp_path: Path) -> None:
    part = Line()
    for _ in train(part, Schedule(steps=300, lr=0.1, ema=0.9), tmp_path, report=lambda _: None):
        last = part.modules["line"].weight.detach().clone()
    assert part.modules["line"].weight.item() == pytest.approx(3, abs=0.05)
    assert not torch.equal(last, part.modules["line"].weight.detach())


def test_the_learning_rate_rises_then_falls_to_its_final_share() -> None:
    schedule = Schedule(steps=1000, lr=1.0, warmup=0.1, final=0.02)
    rates = [schedule.rate(step) for step in range(1000)]
    assert rates[0] == 0.01 and max(rates) == 1.0 and rates.index(1.0) == 99
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    part = Line()
    nn.init.constant_(part.modules["line"].weight, float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        next(train(part, Schedule(steps=2, lr=1.0), tmp_path, report=lambda _: None))


@pytest.fixture(scope="module")
def world() -> Views:
    return random_world(4, 3)


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    vae = architecture.make_vae((8, 8, 8, 8), latent_channels=4)
    pyramid_start(vae, 4, 0)
    return vae


def test_the_pyramid_start_begins_with_a_narrow_posterior_and_lets_colours_through(vae: nn.Module) -> None:
    posterior = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist
    assert torch.allclose(posterior.logvar, torch.full_like(posterior.logvar, -6.0))
    red, blue = (vae.encode(torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 64, 64)).latent_dist.mean for c in RED_BLUE)
    assert (red - blue).abs().mean() > 0.1


RED_BLUE = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0))


def test_the_first_stage_loss_has_a_gradient_everywhere_and_its_psnr_is_that_of_its_error(
    vae: nn.Module, world: Views
) -> None:
    part = FirstStage(vae, world, batch=2, autocast=False)
    loss, figures = part.loss(0, generator(0, 0, "x"))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert 0 < figures["psnr"] < 40 and figures["kl"] > 0


def test_latents_have_zero_mean_and_unit_variance_after_the_stored_scale(vae: nn.Module, world: Views) -> None:
    shift, scale = latent_statistics(vae, world, 0, n=128, batch=32)
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)
    latents = encode_world(vae, world, 3, 0).latent.float()
    assert abs(latents.mean()) < 0.1 and latents.std() == pytest.approx(1, abs=0.15)


def test_views_of_a_group_differ_by_their_camera_only(world: Views) -> None:
    class Itself(nn.Linear):
        config = SimpleNamespace(shift_factor=0.5, scaling_factor=2.0)

        def encode(self, x: Tensor) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x / 2 + 0.5))

    data = encode_world(Itself(1, 1), world, 2, 0)
    for number in range(int(data.group.max()) + 1):
        of_it = data.group == number
        assert len(data.latent[of_it, :, 0, 0].unique(dim=0)) == 1
        assert all(len(column[of_it].unique()) == 1 for column in (data.shape, data.colour, data.octant))
    assert len(data.latent[:, :, 0, 0].unique(dim=0)) > 0.9 * (int(data.group.max()) + 1)


def test_a_perfect_first_stage_has_an_infinite_psnr(world: Views) -> None:
    class Identity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def encode(self, x: Tensor) -> Identity:
            self.x = x
            self.latent_dist = self
            return self

        def mode(self) -> Tensor:
            return self.x

        def decode(self, z: Tensor) -> Identity:
            self.sample = z
            return self

    assert (reconstruction_psnr(Identity(), world, 8, 0, batch=4) > 100).all()


def test_captions_are_as_their_shares_and_every_word_is_one_token() -> None:
    tokenizer = architecture.make_tokenizer([word for word in VOCABULARY if word.isalpha()])
    table = CaptionTable(tokenizer)
    assert caption(0, 4, 1, 3) == "an orange mushroom, overhead view"
    ids = table[tuple(torch.tensor([i]) for i in (0, 4, 1, 3))][0]
    assert len(tokenizer(caption(0, 4, 1, 3)).input_ids) == 8
    assert torch.equal(ids, tokenizer(caption(0, 4, 1, 3), padding="max_length", return_tensors="pt").input_ids[0])
    drawn = draw_templates(20_000, generator(0, 0, "c")).bincount() / 20_000
    assert torch.allclose(drawn, torch.tensor([share for _, share in TEMPLATES]), atol=0.01)
    assert sum(share for _, share in TEMPLATES) == pytest.approx(1) and TEMPLATES[-1][0] == ""


def flow_part(n: int) -> FlowPart:
    tokenizers = [architecture.make_tokenizer(["red", "ball"])] * 2
    encoders = [architecture.make_text_encoder(tokenizers[0], 16, 1, 2, 16, seed=i) for i in range(2)]
    transformer = architecture.make_transformer(encoders, layers=1, heads=2, head_dim=16, latent_channels=4)
    draw = generator(0, 0, "latents")
    label = torch.zeros(n, dtype=torch.long)
    data = Latents(torch.randn(n, 4, 8, 8, generator=draw).half(), label, label, label, label, torch.arange(n))
    return FlowPart(transformer, encoders, CaptionedLatents(data, tokenizers), batch=16, autocast=False)


def test_the_flow_learns_the_velocity_of_a_single_image(tmp_path: Path) -> None:
    part = flow_part(1)
    losses = []
    for step in train(part, Schedule(steps=150, lr=3e-3), tmp_path, report=lambda _: None):
        if step % 49 == 0:
            with torch.no_grad():
                losses.append(part.loss(step, generator(9, 9, "check"))[0].item())
    assert losses[-1] < 0.6 * losses[0]
    x0, eps = part.data.data.latent.float(), torch.randn(1, 4, 8, 8, generator=generator(9, 8, "check"))
    hidden, pooled = embed_tokens(
        part.encoders, [table[(torch.zeros(1, dtype=torch.long),) * 4] for table in part.data.tables]
    )
    u_hat = part.transformer(
        hidden_states=(x0 + eps) / 2,
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    assert torch.cosine_similarity(u_hat.flatten(), (eps - x0).flatten(), dim=0) > 0.5


def test_the_flow_trains_transformer_and_both_text_encoders() -> None:
    part = flow_part(3)
    loss, figures = part.loss(0, generator(0, 0, "x"))
    loss.backward()
    for name, module in part.modules.items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), name
    assert figures["noisy"] > 0 and figures["clean"] > 0


def test_the_judge_learns_a_few_pictures_and_is_softened_without_moving_their_mean(
    world: Views, tmp_path: Path
) -> None:
    images = draw_images(world, 4, generator(0, 0, "i"))
    assert (soften(images, generator(0, 1, "i")) - images).mean().abs() < 0.02
    with architecture.seeded(0):
        part = JudgePart(Judge((8, 8, 16, 16)), world, batch=32)
    for _ in train(part, Schedule(steps=150, lr=4e-3, ema=0.9), tmp_path, report=lambda _: None):
        pass
    accuracy = judge_accuracy(part.judge, world, 200, generator(0, 2, "i"))
    assert accuracy["colour"] > 0.3 and accuracy["shape"] > 0.2


def test_the_view_word_is_known_from_above_and_for_shapes_with_a_front() -> None:
    shape, view = torch.tensor([0, 0, 8, 9]), torch.tensor([1, 3, 1, 0])
    assert view_known(shape, view).tolist() == [False, True, True, True]


def test_unknown_parts_are_refused_and_shipping_writes_sums_that_match(tmp_path: Path) -> None:
    from threestudio_rf.priors.tiny import verify_weights

    with pytest.raises(ValueError, match="vae, instaflow, sd3, sd, sd_v, reflow, pixel, judge"):
        run_part("vqgan", tmp_path)
    with pytest.raises(ValueError, match="expected one of instaflow, sd3"):
        run_part("judge", tmp_path, start=tmp_path)
    with pytest.raises(ValueError, match="expected one of vae"):
        run_part("sd3", tmp_path, sharpening=Sharpening())
    (tmp_path / "run/tiny-sd3").mkdir(parents=True)
    (tmp_path / "run/tiny-sd3/model_index.json").write_text("{}")
    (tmp_path / "run/judge.safetensors").write_bytes(b"0")
    ship(tmp_path / "run", tmp_path / "weights")
    assert verify_weights(folder=tmp_path / "weights") == []
    assert ship_linked(tmp_path) == "../../tiny-sd3/vae/diffusion_pytorch_model.safetensors"
    assert verify_weights(folder=tmp_path / "weights") == []
    (tmp_path / "weights/judge.safetensors").write_bytes(b"1")
    assert len(verify_weights(folder=tmp_path / "weights")) == 1


def ship_linked(folder: Path) -> str:
    """Ship a second prior with the same first stage, later with another; returns where its VAE's file points."""
    for name in ("tiny-sd3", "tiny-sd"):
        (folder / "run" / name / "vae").mkdir(parents=True, exist_ok=True)
        (folder / "run" / name / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"vae")
    ship(folder / "run", folder / "weights")
    linked = folder / "weights/tiny-sd/vae/diffusion_pytorch_model.safetensors"
    assert linked.read_bytes() == b"vae"
    (folder / "run/tiny-sd/vae/diffusion_pytorch_model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="another first stage"):
        ship(folder / "run", folder / "other weights")
    return str(linked.readlink())


def test_views_from_above_are_drawn_more_often_than_they_were_seen() -> None:
    n = 4000
    view = (torch.arange(n) % 10 == 0).long() * 3
    label = torch.zeros(n, dtype=torch.long)
    data = CaptionedLatents(
        Latents(torch.zeros(n, 1, 1, 1), label, label, view, label, torch.arange(n)), [], offset=0.5
    )
    drawn = data.draw(20_000, generator(0, 0, "above"))
    assert (view[drawn.rows] == 3).float().mean().item() == pytest.approx(2.5 / 11.5, abs=0.02)
    assert (drawn.x0 == 0.5).all()


def test_a_training_that_is_told_its_time_ends_then_with_a_low_rate_and_what_it_has(tmp_path: Path) -> None:
    schedule = Schedule(steps=10**9, lr=0.1, warmup=1e-12, seconds=0.3, log_every=1, save_seconds=1e9)
    assert schedule.rate(100, 0.15) == pytest.approx(0.1 * (0.02 + 0.98 * 0.5))
    assert schedule.rate(100, 99.0) == pytest.approx(0.1 * 0.02)
    steps = list(train(Line(), schedule, tmp_path, report=lambda _: None))
    assert 0 < len(steps) < 10**6 and (tmp_path / "line.pt").exists()


def test_a_training_can_begin_with_the_weights_of_another(tmp_path: Path) -> None:
    tokenizer = architecture.make_tokenizer(["red"])
    one, two = (architecture.make_text_encoder(tokenizer, 8, 1, 1, 8, seed=seed) for seed in (1, 2))
    two.save_pretrained(tmp_path)
    architecture.copy_weights(one, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    wider = architecture.make_text_encoder(tokenizer, 16, 1, 1, 8)
    with pytest.raises(RuntimeError):
        architecture.copy_weights(wider, tmp_path)
