"""Laws of the first stage's loss: bottleneck, patches, adversarial terms, and whose gradient goes where.

Seen to fail: the real and fake logits exchanged, in hinge and in vanilla; their half left out; the sign of the
generator's loss; its discriminator not held fixed; its running statistics not copied; the reconstruction not detached
for the discriminator; the adaptive weight inverted, not clamped, with 1e-3, at another layer; `start` one step late;
`factor` for the generator only; the condition made from the reconstruction; stride 2 in the last block; widths up to 4
times; another deviation of the first weights; KL with the variances exchanged; a deterministic posterior with a KL;
no 2 pi; commitment at the other term; the codebook reached through the latent; the farthest entry; "mean" of KL by the
elements of the image; log-variance without its + s, with the other sign, not learned; the perceptual distance left out,
its features not normalised, its judge not frozen; the ratio of sharpness inverted, one axis only; the settings'
discriminator left out of the part, its start or weight not passed on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.folder import architecture
from threestudio_rf.priors.tiny import weights_folder
from threestudio_rf.tiny.train.discriminator import (
    Adversary,
    PatchDiscriminator,
    Posterior,
    adaptive_weight,
    generator_loss,
    hinge,
    quantise,
    vanilla,
)
from threestudio_rf.tiny.train.judging import JudgeDistance
from threestudio_rf.tiny.train.stage import (
    AdversarialFirstStage,
    FirstStage,
    Sharpening,
    Terms,
    autoencode,
    draw_images,
    psnr,
    pyramid_start,
    sharpness,
)
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.world.judge import load_judge
from threestudio_rf.tiny.world.views import Views, random_world


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels this small gain nothing from a second thread and wait for it where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world() -> Views:
    return random_world(2, 3)


PLAIN = Terms()


def make_part(world: Views, adversary: Adversary | None, terms: Terms = PLAIN) -> AdversarialFirstStage:
    vae = architecture.make_vae((8, 8, 8, 8), latent_channels=4)
    pyramid_start(vae, 4, 0)
    return AdversarialFirstStage(vae, world, adversary=adversary, terms=terms, batch=2, autocast=False)


def patches(seed: int = 5) -> PatchDiscriminator:
    return PatchDiscriminator(width=8, layers=2, seed=seed)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


def two_optimisers(part: AdversarialFirstStage, loss: str, factor: float) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of autoencoder and discriminator by two separate losses, as in taming-transformers."""
    judge: Any = copy.deepcopy(part.modules["discriminator"])
    image, output, mean, _, logvar = autoencode(part.vae, part.world, 2, generator(0, 0, "x"), autocast=False)
    nll = (output - image).abs().mean()
    g = -judge(output).mean()
    last = part.vae.decoder.conv_out.weight
    of_nll, of_g = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (nll, g))
    weight = 0.5 * min(max((of_nll / (of_g + 1e-4)).item(), 0.0), 1e4)
    kl = (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).mean()
    own = torch.autograd.grad(nll + 1e-4 * kl + factor * weight * g, list(part.vae.parameters()))
    real, fake = judge(image), judge(output.detach())
    if loss == "hinge":
        d = ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()) / 2
    else:
        d = ((1 + (-real).exp()).log().mean() + (1 + fake.exp()).log().mean()) / 2
    return list(own), list(torch.autograd.grad(factor * d, list(judge.parameters())))


@pytest.mark.parametrize(("loss", "factor"), [("hinge", 1.0), ("vanilla", 0.7)])
def test_one_scalar_gives_each_network_its_own_gradient(world: Views, loss: str, factor: float) -> None:
    part = make_part(world, Adversary(patches(), loss, factor=factor))
    of_autoencoder, of_discriminator = two_optimisers(part, loss, factor)
    value, figures = part.loss(0, generator(0, 0, "x"))
    value.backward()
    for module, wanted in ((part.vae, of_autoencoder), (part.modules["discriminator"], of_discriminator)):
        found = [p.grad for p in module.parameters()]
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(found, wanted, strict=True))
        assert sum(b.abs().sum() for b in wanted) > 0
    assert figures["weight"] > 0 and figures["d"] > 0


def test_before_its_start_nothing_of_the_discriminator_reaches_the_autoencoder(world: Views) -> None:
    alone, early, late = (make_part(world, a) for a in (None, Adversary(patches(), start=3), Adversary(patches())))
    for part, step in ((alone, 2), (early, 2), (late, 2)):
        part.loss(step, generator(0, 0, "x"))[0].backward()
    wanted = gradients(alone.vae)
    assert all(torch.equal(g, wanted[name]) for name, g in gradients(early.vae).items())
    assert not all(torch.equal(g, wanted[name]) for name, g in gradients(late.vae).items())
    assert all(g is None for g in gradients(early.modules["discriminator"]).values())
    assert early.modules["discriminator"].body[3].num_batches_tracked == 0
    early.loss(3, generator(0, 0, "x"))[0].backward()
    assert all(g is not None for g in gradients(early.modules["discriminator"]).values())


def test_the_loss_of_the_generator_moves_neither_weights_nor_running_statistics() -> None:
    discriminator, image = patches(), normal((2, 3, 32, 32), generator(0, 0, "i")).requires_grad_()
    before = copy.deepcopy(discriminator.state_dict())
    g = generator_loss(discriminator, image)
    g.backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    assert torch.allclose(g, -discriminator(image).mean())


def test_an_adversarial_training_that_is_stopped_ends_bit_equal(world: Views, tmp_path: Path) -> None:
    def after(folder: Path, stops: tuple[int, ...]) -> dict[str, Tensor]:
        for stop in stops:
            part = make_part(world, Adversary(patches(), start=1), Terms(learn_logvar=True))
            schedule = Schedule(steps=4, lr=1e-3, save_seconds=0, log_every=1)
            for step in train(part, schedule, folder, report=lambda _: None):
                if step + 1 == stop:
                    break
        return part.modules.state_dict()

    whole, stopped = after(tmp_path / "a", (4,)), after(tmp_path / "b", (2, 4))
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert whole["output.logvar"] != 0 and whole["discriminator.body.3.num_batches_tracked"] == 6


def test_hinge_and_vanilla_have_their_values_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25])
    assert hinge(real, fake) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1.25) / 2) / 2)
    entropy = F.binary_cross_entropy_with_logits
    wanted = (entropy(real, torch.ones(3)) + entropy(fake, torch.zeros(2))) / 2
    assert vanilla(real, fake) == pytest.approx(wanted.item())
    assert vanilla(torch.zeros(1), torch.zeros(1)) == pytest.approx(math.log(2))
    assert hinge(torch.zeros(1), torch.zeros(1)) == 1


def test_the_adaptive_weight_is_the_ratio_of_two_gradient_norms_and_is_clamped() -> None:
    draw = generator(0, 0, "w")
    hidden, target = torch.randn(4, 5, generator=draw).double(), torch.randn(4, 2, generator=draw).double()
    last = torch.randn(2, 5, generator=draw).double().requires_grad_()

    def losses(w: Tensor) -> tuple[Tensor, Tensor]:
        out = hidden @ w.T
        return (out - target).square().mean(), -torch.tanh(out).mean()

    norms = []
    for which in (0, 1):
        slopes = []
        for i in range(10):
            ends = []
            for h in (1e-6, -1e-6):
                moved = last.detach().clone()
                moved.view(-1)[i] += h
                ends.append(losses(moved)[which].item())
            slopes.append((ends[0] - ends[1]) / 2e-6)
        norms.append(math.sqrt(sum(s * s for s in slopes)))
    weight = adaptive_weight(*losses(last), last)
    assert weight.item() == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-6) and not weight.requires_grad
    nll, g = losses(last)
    assert adaptive_weight(nll, 0 * g, last).item() == pytest.approx(min(1e4, norms[0] * 1e4), rel=1e-6)
    assert adaptive_weight(1e6 * nll, 0 * g, last).item() == 1e4


def test_the_discriminator_is_the_patchgan_of_pix2pix() -> None:
    big = PatchDiscriminator(condition=3)
    assert sum(p.numel() for p in big.parameters()) == 2_768_705  # pix2pix prints 2.769 M
    assert big(torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    weights = torch.cat([m.weight.detach().flatten() for m in big.body if isinstance(m, nn.Conv2d)])
    assert weights.std() == pytest.approx(0.02, rel=0.01) and abs(weights.mean()) < 1e-4
    norms = torch.cat([m.weight.detach() for m in big.body if isinstance(m, nn.BatchNorm2d)])
    assert norms.mean() == pytest.approx(1, abs=0.005) and norms.std() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_one_logit_sees_one_patch(layers: int, field: int) -> None:
    discriminator = PatchDiscriminator(width=4, layers=layers).double().eval()
    image = normal((1, 3, 160, 160), generator(0, 0, "i"), dtype=torch.float64).requires_grad_()
    logits = discriminator(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == field and seen.any(1).sum() == field


def test_a_condition_is_joined_to_both_pictures() -> None:
    seen = []

    class Spy(PatchDiscriminator):
        def forward(self, image: Tensor, condition: Tensor | None = None) -> Tensor:
            seen.append(condition)
            return super().forward(image, condition)

    joined = PatchDiscriminator(4, width=4, layers=1, seed=1)
    spy = Spy(3, condition=1, width=4, layers=1, seed=1)
    image, output = normal((2, 2, 3, 16, 16), generator(0, 0, "i"))
    grey = image.mean(1, keepdim=True)
    assert torch.equal(spy(image, grey), joined(torch.cat([image, grey], dim=1)))
    seen.clear()
    adversary = Adversary(spy, condition=lambda x: x.mean(1, keepdim=True))
    g, _, figures = adversary.losses(image, output)
    assert len(seen) == 3 and all(torch.equal(c, grey) for c in seen)
    assert g == pytest.approx(-joined(torch.cat([output, grey], dim=1)).mean().item(), abs=1e-6)
    assert figures["fake"] == pytest.approx(-g.item(), abs=1e-6)


def test_wrong_discriminators_are_refused() -> None:
    with pytest.raises(ValueError, match="a condition of 1, expected 3 and 0"):
        patches()(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="got 4 channels"):
        patches()(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="expected at least 1"):
        PatchDiscriminator(layers=0)
    with pytest.raises(ValueError, match="'wgan', expected one of hinge, vanilla"):
        Adversary(patches(), "wgan")
    with pytest.raises(ValueError, match="'max', expected mean or sum"):
        Terms(reduction="max")


def test_a_discriminator_learns_to_tell_blurred_pictures(world: Views) -> None:
    adversary = Adversary(PatchDiscriminator(width=16, layers=2))
    optimiser = torch.optim.AdamW(adversary.discriminator.parameters(), lr=5e-4, betas=(0.5, 0.9))
    for step in range(36):
        image = draw_images(world, 8, generator(0, step, "d")) * 2 - 1
        _, d, logits = adversary.losses(image, F.avg_pool2d(image, 5, 1, 2, count_include_pad=False))
        optimiser.zero_grad()
        d.backward()
        optimiser.step()
    assert d < 0.8 and logits["real"] > logits["fake"] + 0.4


def gaussians() -> tuple[Posterior, Posterior, Tensor]:
    a, b, c, d, x = normal((5, 3, 4, 2, 2), generator(0, 0, "g"), dtype=torch.float64)
    return Posterior(a, 0.7 * b), Posterior(c, 0.5 * d), x


def test_the_divergences_are_those_of_torch_and_of_diffusers() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from torch.distributions import Normal, kl_divergence

    one, other, x = gaussians()
    first, second = (Normal(p.mean, (0.5 * p.logvar).exp()) for p in (one, other))
    unit = Normal(torch.zeros_like(one.mean), torch.ones_like(one.mean))
    assert torch.allclose(one.kl(), kl_divergence(first, unit).sum((1, 2, 3)), rtol=1e-12)
    assert torch.allclose(one.kl(other), kl_divergence(first, second).sum((1, 2, 3)), rtol=1e-12)
    assert torch.allclose(one.nll(x), -first.log_prob(x).sum((1, 2, 3)), rtol=1e-12)
    theirs = [DiagonalGaussianDistribution(torch.cat([p.mean, p.logvar], dim=1)) for p in (one, other)]
    assert torch.allclose(one.kl(other), theirs[0].kl(theirs[1]), rtol=1e-12)
    assert torch.allclose(one.kl(), theirs[0].kl(), rtol=1e-12)
    assert one.kl(one).abs().max() < 1e-12


def test_a_deterministic_posterior_has_no_divergence_and_its_sample_is_its_mode() -> None:
    one, other, x = gaussians()
    fixed = one._replace(deterministic=True)
    for value in (fixed.kl(), fixed.kl(other), fixed.nll(x)):
        assert torch.equal(value, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(fixed.sample(generator(0, 1, "g")), one.mode())
    with pytest.raises(ValueError, match="expected"):
        one.kl(fixed)
    with pytest.raises(ValueError, match="expected"):
        one.nll(x[:, :1])


def test_samples_of_a_posterior_have_its_mean_and_its_deviation() -> None:
    wide = Posterior(torch.full((1, 1, 200, 200), 3.0), torch.full((1, 1, 200, 200), math.log(0.25)))
    z = wide.sample(generator(0, 0, "z"))
    assert z.mean() == pytest.approx(3, abs=0.02) and z.std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(z, wide.sample(generator(0, 0, "z")))


def test_a_codebook_gives_the_nearest_entry_and_passes_gradients_straight_through() -> None:
    draw = generator(0, 0, "vq")
    z = torch.randn(2, 3, 4, 5, generator=draw).double().requires_grad_()
    book = torch.randn(7, 3, generator=draw).double().requires_grad_()
    found = quantise(z, book, commitment=0.3)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        nearest = min(range(7), key=lambda k: (z[b, :, i, j] - book[k]).square().sum().item())
        assert found.code[b, i, j] == nearest
        assert torch.allclose(found.latent[b, :, i, j], book[nearest], atol=1e-14)
    up = torch.randn(z.shape, generator=draw).double()
    of_z, of_book = torch.autograd.grad((found.latent * up).sum(), (z, book), retain_graph=True, allow_unused=True)
    assert torch.equal(of_z, up) and of_book is None
    entry = book.detach()[found.code].movedim(-1, 1)
    assert found.loss.item() == pytest.approx(1.3 * (z.detach() - entry).square().mean().item())
    of_z, of_book = torch.autograd.grad(found.loss, (z, book))
    assert torch.allclose(of_z, 0.3 * 2 * (z - entry).detach() / z.numel())
    pull = torch.zeros(7, 3).double()
    pull.index_add_(0, found.code.flatten(), (entry - z.detach()).movedim(1, -1).reshape(-1, 3) * 2 / z.numel())
    assert torch.allclose(of_book, pull)
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\) and \(K, C\)"):
        quantise(z, book[:, :2])


def test_the_reconstruction_term_is_a_likelihood_by_hand() -> None:
    image, output = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.5, -1.0]]], [[[0.0, 2.0]]]])
    s = torch.tensor(math.log(2))
    terms = Terms(absolute=1.0, squared=3.0, perceptual=10.0, reduction="sum")
    errors = [0.5 + 0.75 + 1.0, 1.0 + 3.0 + 1.0, 0.0 + 2.0, 2.0 + 12.0 + 2.0]  # |d| + 3 d^2 + 10 p
    wanted = sum(error / 2 + math.log(2) for error in errors)
    found = terms.nll(image, output, s, distance=lambda a, b: torch.tensor([0.1, 0.2]))
    assert found == pytest.approx(wanted / 2)
    mean = Terms(squared=3.0, perceptual=10.0).nll(image, output, s, distance=lambda a, b: torch.tensor([0.1, 0.2]))
    assert mean == pytest.approx(wanted / 4)


def test_the_learned_output_variance_rests_at_the_mean_error() -> None:
    image, output = normal((2, 3, 3, 8, 8), generator(0, 0, "l"))
    s = (output - image).abs().mean().log().requires_grad_()
    (slope,) = torch.autograd.grad(Terms().nll(image, output, s), s)
    assert abs(slope) < 1e-6


def test_sum_and_mean_differ_by_the_number_of_elements_only(world: Views) -> None:
    big, small = 3 * 64 * 64, 4 * 8 * 8
    parts = [
        make_part(world, None, Terms(kl=1e-4)),
        make_part(world, None, Terms(kl=1e-4 * big / small, reduction="sum")),
    ]
    for part in parts:
        part.loss(0, generator(0, 0, "x"))[0].backward()
    mean, total = (gradients(part.vae) for part in parts)
    assert all(torch.allclose(big * mean[name], g, rtol=1e-3, atol=1e-2) for name, g in total.items())


def test_with_its_own_weights_the_plain_first_stage_comes_back(world: Views) -> None:
    terms = Terms(absolute=0.5, squared=4.0)
    part = make_part(world, None, terms)
    plain = FirstStage(part.vae, world, batch=2, autocast=False)
    found, wanted = (p.loss(0, generator(0, 0, "x")) for p in (part, plain))
    assert torch.allclose(found[0], wanted[0], rtol=1e-5)
    assert found[1]["psnr"] == pytest.approx(wanted[1]["psnr"], abs=1.0)  # mean of logarithms, logarithm of the mean


def test_the_perceptual_distance_is_zero_for_a_copy_grows_with_blur_and_is_bounded(world: Views) -> None:
    judge = load_judge(weights_folder()).requires_grad_()
    distance = JudgeDistance(judge)
    image = draw_images(world, 6, generator(0, 0, "p")) * 2 - 1
    blurred = [F.avg_pool2d(image, k, 1, k // 2, count_include_pad=False) for k in (3, 7)]
    near, far = (distance(image, other) for other in blurred)
    assert torch.equal(distance(image, image), torch.zeros(6)) and (far > near).all() and (near > 0).all()
    assert torch.allclose(distance(image, blurred[0]), distance(blurred[0], image))
    output = blurred[1].requires_grad_()
    distance(image, output).sum().backward()
    assert output.grad is not None and output.grad.abs().sum() > 0
    assert all(p.grad is None for p in distance.body.parameters())
    assert all(p.grad is None and p.requires_grad for p in judge.parameters())
    assert (distance(1000 * image, -1000 * image) <= 4).all()  # twice the length of a unit vector, squared
    with pytest.raises(ValueError, match="expected both or neither"):
        AdversarialFirstStage(architecture.make_vae((8, 8)), world, distance=distance)


def test_the_perceptual_term_is_part_of_the_loss(world: Views) -> None:
    distance = JudgeDistance(load_judge(weights_folder()))
    part = make_part(world, None)
    plain = part.loss(0, generator(0, 0, "x"))[0]
    part.terms, part.distance = Terms(perceptual=2.0), distance
    image, output, *_ = autoencode(part.vae, world, 2, generator(0, 0, "x"), autocast=False)
    wanted = plain + 2 * distance(image, output).mean()
    assert torch.allclose(part.loss(0, generator(0, 0, "x"))[0], wanted, rtol=1e-5)


def test_sharpness_is_one_for_a_copy_less_for_a_blur_and_grows_as_contrast_squared(world: Views) -> None:
    image = draw_images(world, 6, generator(0, 0, "s"))
    assert torch.equal(sharpness(image, image), torch.ones(6))
    soft = F.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    assert (sharpness(soft, image) < 0.8).all()
    assert torch.allclose(sharpness(0.5 * image + 0.2, image), torch.full((6,), 0.25), rtol=1e-4)
    step, ramp = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 0.25, 0.75, 1])
    edge, slope = (x.expand(1, 1, 4, 4) for x in (step, ramp))
    assert sharpness(slope, edge) == pytest.approx(0.25**2 + 0.5**2 + 0.25**2)
    assert psnr(slope, edge) == pytest.approx(-10 * math.log10(2 * 0.25**2 / 4), abs=1e-4)


def test_settings_of_a_training_become_its_adversary(world: Views) -> None:
    vae = architecture.make_vae((8, 8, 8, 8), latent_channels=4)
    pyramid_start(vae, 4, 0)
    judge = JudgeDistance(load_judge(weights_folder()))
    chosen = Sharpening("vanilla", start=3, weight=0.25, perceptual=0.1)
    part = chosen.part(vae, world, batch=2, seed=0, distance=judge)
    assert part.adversary is not None
    assert (part.adversary.loss, part.adversary.start, part.adversary.weight) == ("vanilla", 3, 0.25)
    early, late = (part.loss(step, generator(0, 0, "sharpening"))[1] for step in (2, 3))
    assert early["weight"] == 0 and late["weight"] > 0
    with pytest.raises(ValueError, match="expected both or neither"):
        chosen.part(vae, world, batch=2, seed=0)
    with pytest.raises(ValueError, match="expected one of"):
        Sharpening("wasserstein").part(vae, world, batch=2, seed=0)
