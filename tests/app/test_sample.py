"""task=sample and its Python API: settings, given pictures, files, and what a picture depends on.

Seen to fail: start, fresh or shared noise numbered within the batch; gradients off while a run waits; conditions
exchanged; perp_neg, corrector, callback or latents not passed on; an inversion under guidance; 16 bits divided by 255;
no white behind transparency, of a palette too; EXIF ignored; the top left corner kept, or the picture squeezed; short
names with every task; sizes of mask and picture not compared; the checks not called; every mask white.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from threestudio_rf.app import api
from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.picture import fitted, read_picture
from threestudio_rf.app.build.sampling import grid_of, plan, run
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.level import DiscreteVP, betas
from threestudio_rf.core.sample import State
from threestudio_rf.core.times import sampling_times, spacing
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.tiny.world.views import COLOURS

TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")
SIZE = 4


def colours(**path: Any) -> GaussianPrior:
    """A mixture of flat colours."""
    means = (2 * torch.tensor(list(COLOURS.values())) - 1)[:, :, None, None].expand(-1, -1, SIZE, SIZE)
    return GaussianPrior(means, 0.1, names=list(COLOURS), **path)


FLOW, NOISY = colours(), colours(kind="eps", schedule=TABLE)


@pytest.mark.parametrize(
    ("prior", "settings"),
    [
        (FLOW, {"sampler": "heun"}),
        (FLOW, {"sampler": "ddim", "eta": 1.0}),
        (NOISY, {"sampler": "ddpm"}),
        (NOISY, {"sampler": "ddpm", "repeat_noise": True}),
        (NOISY, {"sampler": "ddim", "eta": 0.5, "noise_dropout": 0.2}),
    ],
    ids=["heun", "flow-eta", "ddpm", "shared", "dropout"],
)
def test_a_picture_depends_on_the_seed_and_its_number_only(prior: GaussianPrior, settings: dict[str, Any]) -> None:
    few = api.sample("a red ball", prior=prior, n=2, steps=4, batch=1, **settings)
    many = api.sample("a red ball", prior=prior, n=5, steps=4, batch=4, **settings)
    assert torch.allclose(few, many[:2], atol=1e-5) and not torch.allclose(many[0], many[1], atol=1e-3)
    other = api.sample("a red ball", prior=prior, n=2, steps=4, seed=1, **settings)
    assert not torch.allclose(few, other, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler", "heun", "midpoint"])
def test_every_sampler_paints_what_the_prompt_says(sampler: str) -> None:
    pictures = api.sample("a red ball", prior=NOISY, n=4, steps=20, cfg=1, sampler=sampler)
    assert pictures.shape == (4, 3, SIZE, SIZE) and pictures.dtype == torch.float32
    wanted = torch.tensor(COLOURS["red"])[:, None, None]
    assert (pictures - wanted).abs().mean() < 0.12 and bool(((pictures >= 0) & (pictures <= 1)).all())


@pytest.mark.parametrize("prior", [FLOW, NOISY], ids=["flow", "table"])
def test_a_picture_comes_back_from_its_inverted_noise(prior: GaussianPrior) -> None:
    picture = torch.tensor(COLOURS["red"])[:, None, None].expand(3, SIZE, SIZE) * 0.9 + 0.05
    noise = api.invert(picture, "a red ball", prior=prior, steps=100, sampler="heun")
    again = api.sample("a red ball", prior=prior, latents=noise, steps=100, sampler="heun", cfg=1)
    assert noise.shape == (1, 3, SIZE, SIZE) and (again[0] - picture).abs().max() < 0.02
    assert not torch.allclose(api.sample("a red ball", prior=prior, steps=100, cfg=1)[0], picture, atol=0.05)


def test_the_api_draws_the_pictures_of_the_command(launcher: Any, tmp_path: Path) -> None:
    line = ["task=sample", "prior=gaussian", "prompt=a red ball", "n=3", "steps=5", "sampler=ddim", "eta=1", "seed=3"]
    code, folder, out, _ = launcher(*line, "strip=true", "log_every=2", f"exp_root_dir={tmp_path}")
    assert code == 0 and "strip.png" in out and (folder / "save/sheet.png").exists()
    pictures = api.sample("a red ball", prior="gaussian", n=3, steps=5, sampler="ddim", eta=1, seed=3, device="cpu")
    for i, picture in enumerate(pictures):
        stored = np.asarray(Image.open(folder / f"save/0000{i}.png"))
        assert np.array_equal(stored, (picture * 255).round().byte().permute(1, 2, 0).numpy())
    strip = Image.open(folder / "save/strip.png")
    assert strip.width // 64 == 3 and strip.height // 64 == 3, "after steps 1, 3 and 5"


def test_a_run_that_waits_leaves_gradients_on() -> None:
    states = run(plan(FLOW, "a red ball", SampleConfig(steps=3)), [0])
    next(states)
    assert torch.is_grad_enabled() and not next(states).x.requires_grad


def test_a_callback_hears_every_step_of_every_batch() -> None:
    heard: list[State] = []
    api.sample("a red ball", prior=FLOW, n=3, batch=2, steps=4, callback=heard.append)
    assert [state.left for state in heard] == [3, 2, 1, 0] * 2 and [len(state.x) for state in heard] == [2] * 4 + [
        1
    ] * 4
    assert torch.allclose(heard[3].x0_hat, heard[3].x, atol=1e-6), "Euler ends in its last x0_hat"


def test_a_corrector_has_the_last_word_on_the_noise() -> None:
    def towards_white(eps_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return eps_hat - 2 * t[:, None, None, None]

    plain = api.sample("a red ball", prior=NOISY, n=2, steps=10, cfg=1)
    pushed = api.sample("a red ball", prior=NOISY, n=2, steps=10, cfg=1, corrector=towards_white)
    assert (pushed - plain).mean() > 0.02


def test_a_picture_to_start_from_stays_the_nearer_the_lower_the_strength() -> None:
    picture = torch.tensor(COLOURS["blue"])[:, None, None].expand(3, 9, 9).contiguous()
    pictures = [
        api.sample("a red ball", prior=FLOW, image=picture, strength=strength, steps=20, cfg=1)[0]
        for strength in (0.1, 1.0)
    ]
    gaps = [(x - picture[:, :SIZE, :SIZE]).abs().mean() for x in pictures]
    assert gaps[0] < 0.3 < 0.4 < gaps[1]
    assert (pictures[1] - torch.tensor(COLOURS["red"])[:, None, None]).abs().mean() < 0.15


def test_the_black_part_of_a_mask_is_kept(launcher: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 16), (40, 90, 200))
    mask = Image.new("L", (16, 16), 0)
    ImageDraw.Draw(mask).rectangle((8, 0, 15, 15), fill=255)
    picture.save(tmp_path / "a, b.png")
    mask.save(tmp_path / "mask.png")
    line = ["task=sample", "prior=gaussian", "prompt=a red ball", "n=2", "steps=6", f"image={tmp_path}/a, b.png"]
    code, folder, out, _ = launcher(*line, f"mask={tmp_path}/mask.png", f"exp_root_dir={tmp_path}")
    assert code == 0 and "sample.image is 16 x 16: scaled to 8 x 8" in out
    stored = np.asarray(Image.open(folder / "save/00001.png"))
    assert (stored[:, :4] == (40, 90, 200)).all() and not (stored[:, 4:] == (40, 90, 200)).all()


def test_short_names_are_those_of_the_sampler_for_its_task_only() -> None:
    line = ["task=sample", "prompt=x", "sampler=ddim", "steps=7", "eta=0.5", "cfg=2", "strength=0.5", "seed=3", "n=2"]
    line += ["image=a child's, drawing.png", "mask=m.png", "spacing=trailing", "sample.rescale=0.5"]
    config = typed(compose(translate(line).overrides))
    assert (config.sample.sampler, config.sample.steps, config.sample.eta, config.sample.cfg) == ("ddim", 7, 0.5, 2)
    assert (config.sample.image, config.sample.mask) == ("a child's, drawing.png", "m.png")
    assert (config.sample.n, config.seed, config.sample.strength, config.sample.rescale) == (2, 3, 0.5, 0.5)
    for item in ("steps=7", "sampler=ddim", "n=3"):
        with pytest.raises(UserError, match="unknown key"):
            translate(["prompt=x", item])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("sampler=euler eta=0.5", "got eta with sampler euler"),
        ("temperature=0.5", "got temperature with sampler euler"),
        ("limit=clamp", "expected one of none, clip"),
        ("sampler=ddim temperature=0.5", "draws no noise"),
        ("repeat_noise=true", "got repeat_noise"),
        ("mask=m.png", "sample.mask needs sample.image"),
        ("strength=0.5", "needs sample.image"),
        ("perp_neg=-1", "needs a negative_prompt"),
        ("perp_neg=-1 negative_prompt=x cfg=0", "above 0"),
        ("perp_neg=1", "at most 0"),
        ("sampler=dpm", "expected one of auto, ddpm"),
        ("steps=0", r"sample\.steps=0"),
        ("image=i.png strength=0", r"sample\.strength=0\.0"),
        ("eta=2", r"sample\.eta"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_a_model_loads(settings: str, message: str) -> None:
    config = typed(compose(translate(["task=sample", "prompt=x", *settings.split()]).overrides))
    with pytest.raises(UserError, match=message):
        check(config)


@pytest.mark.parametrize(
    ("prior", "settings", "message"),
    [
        (FLOW, {"sampler": "ddpm"}, "gaussian is a flow.*ddim eta=1"),
        (FLOW, {"spacing": "leading"}, "expected even or flow_match"),
        (NOISY, {"spacing": "even"}, "has a table of betas"),
        (NOISY, {"shift": 3.0}, r"sample\.shift=3: .*no shift"),
        (NOISY, {"spacing": "quad", "steps": 1001}, "at most 1000"),
        (NOISY, {"sampler": "ddpm", "steps": 1}, "at least two steps"),
        (FLOW, {"image": torch.zeros(3, 4, 4), "strength": 0.1, "steps": 5, "sampler": "ddpm"}, "flow"),
        (NOISY, {"image": torch.zeros(3, 4, 4), "strength": 0.1, "steps": 5}, "leaves none"),
        (FLOW, {"mask": torch.ones(1, 4, 4)}, "needs sample.image"),
        (FLOW, {"image": torch.zeros(3, 4, 4), "mask": torch.ones(1, 8, 4)}, "4 x 8, expected .* 4 x 4"),
        (FLOW, {"image": torch.zeros(3, 4, 4), "mask": torch.zeros(1, 4, 4)}, "no white part"),
        (FLOW, {"image": torch.zeros(3, 4, 4), "latents": torch.zeros(1, 3, 4, 4)}, "only one of them"),
        (FLOW, {"step": 3}, "unknown setting step; did you mean steps"),
        (FLOW, {"cfg": -1.0}, r"sample\.cfg"),
        ("tiny_sd4", {}, "expected one of"),
    ],
)
def test_what_a_prior_cannot_do_is_refused_by_name(prior: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        api.sample("a red ball", prior=prior, **settings)


def test_a_prior_is_loaded_by_name_with_its_settings() -> None:
    prior = api.load_prior("gaussian", size=6, std=0.2)
    assert prior.latent_shape == (3, 6, 6) and api.sample("a red ball", prior=prior, steps=2).shape == (1, 3, 6, 6)
    for name, settings, message in (
        ("gaussian", {"sizes": 6}, "did you mean size"),
        ("gaussian", {"std": -1.0}, r"prior\.std"),
        ("sd3", {"path": ""}, "needs weights"),
        ("sd4", {}, "expected one of"),
    ):
        with pytest.raises(UserError, match=message):
            api.load_prior(name, **settings)


def test_given_latents_are_sampled_in_batches_as_they_are_at_once() -> None:
    latents = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = api.sample("x", prior=FLOW, latents=latents, steps=3, batch=5)
    assert len(whole) == 5 and len({picture.sum().item() for picture in whole}) == 5
    assert torch.allclose(api.sample("x", prior=FLOW, latents=latents, steps=3, batch=2), whole, atol=1e-6)


def test_tensors_of_another_shape_raise_and_noise_cannot_be_inverted() -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 3, 4, 4\)"):
        api.sample("x", prior=FLOW, latents=torch.zeros(2, 3, 8, 8))
    for bad in (torch.zeros(2, 3, 4, 4), torch.zeros(4, 4), torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(ValueError, match="image: got"):
            api.sample("x", prior=FLOW, image=bad)
    for settings in ({"sampler": "ddim", "eta": 0.5}, {"sampler": "ddpm"}):
        with pytest.raises(UserError, match="eta=0, euler"):
            api.invert(torch.zeros(3, 4, 4), prior=FLOW if "eta" in settings else NOISY, **settings)


def test_spacings_follow_the_prior() -> None:
    assert torch.equal(grid_of(FLOW, SampleConfig(steps=6)).times, spacing(6))
    assert torch.equal(grid_of(FLOW, SampleConfig(steps=6, shift=3.0)).times, spacing(6, shift=3.0))
    assert torch.equal(grid_of(NOISY, SampleConfig(steps=6)).times, sampling_times(6, law="leading"))
    assert torch.equal(
        grid_of(NOISY, SampleConfig(steps=6, offset=0)).times, sampling_times(6, law="leading", offset=0)
    )
    assert torch.equal(grid_of(NOISY, SampleConfig(steps=6, spacing="quad")).times, sampling_times(6, law="quad"))


def test_without_a_named_sampler_it_is_the_priors_own_and_ddim_where_eta_is_given() -> None:
    for settings, name in (({}, "euler"), ({"eta": 0.5}, "ddim"), ({"sampler": "heun"}, "heun")):
        assert plan(NOISY, "a red ball", SampleConfig(steps=4, **settings)).rule.sampler == name
    start = plan(NOISY, "a red ball", SampleConfig(steps=6, sampler="dpmpp_2m")).grid
    assert start.heard is not None and start.times.shape == (7,)
    with pytest.raises(UserError, match="walks on the entries of its table"):
        grid_of(NOISY, SampleConfig(steps=6, sampler="ddpm", spacing="karras"))
    assert grid_of(NOISY, SampleConfig(steps=3, spacing="linspace")).times.tolist() == pytest.approx(
        [1, 0.501, 0.001, 0], abs=1e-3
    )


def test_a_negative_prompt_pushes_away_also_across() -> None:
    prior, asked = colours(), []
    real = prior.embed
    prior.embed = lambda prompts: asked.append(prompts) or real(prompts)  # type: ignore[method-assign]
    plain = api.sample("a red or blue ball", prior=prior, n=4, steps=10, cfg=2)
    replaced = api.sample("a red or blue ball", prior=prior, n=4, steps=10, cfg=2, negative_prompt="blue")
    across = api.sample("a red or blue ball", prior=prior, n=4, steps=10, cfg=2, negative_prompt="blue", perp_neg=-1)
    assert [len(texts) for texts in asked] == [2, 2, 3] and asked[2] == ["a red or blue ball", "", "blue"]
    red, blue = (torch.tensor(COLOURS[name])[:, None, None] for name in ("red", "blue"))

    def bluer(pictures: Tensor) -> float:
        return float(((pictures - blue).abs().mean((1, 2, 3)) < (pictures - red).abs().mean((1, 2, 3))).sum())

    assert bluer(replaced) < bluer(plain) and not torch.allclose(across, plain, atol=1e-3)


# ---- pictures that a user gives ----


def written(path: Path, picture: Image.Image, **options: Any) -> Tensor:
    picture.save(path, **options)
    return read_picture(path, "image")


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    read = written(tmp_path / "a.png", Image.fromarray(values))
    assert torch.allclose(read[0, 0] * 255, torch.tensor([0.0, 1.0, 128.0, 255.0]), atol=1e-4)
    assert torch.equal(read[0], read[1]) and read.shape == (3, 1, 4)


def test_transparency_is_white_whatever_colour_it_hides(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 200, 128))
    read = written(tmp_path / "a.png", picture)
    assert torch.equal(read[:, 0, 0], torch.ones(3))
    assert torch.allclose(read[:, 0, 1] * 255, torch.tensor([127.0, 127.0, 227.4]), atol=0.1)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert torch.equal(written(tmp_path / "b.png", palette, transparency=0)[:, 0, 0], torch.ones(3))


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert written(tmp_path / "a.png", picture, exif=exif).shape == (3, 8, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGB"])
def test_every_mode_becomes_red_green_and_blue(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)
    read = written(tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png"), picture)
    assert read.shape == (3, 3, 5) and torch.allclose(read, torch.ones(3, 3, 5), atol=0.01)


def test_an_animation_gives_its_first_frame_with_a_notice(tmp_path: Path, caplog: Any) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    from threestudio_rf.app.console import LOG

    LOG.propagate = True
    with caplog.at_level("INFO"):
        read = written(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert torch.equal(read[:, 0, 0], torch.tensor([1.0, 0.0, 0.0])) and "2 frames: the first" in caplog.text


def test_broken_files_are_user_errors_that_name_the_file(launcher: Any, tmp_path: Path, monkeypatch: Any) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:3000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    words = {"cut.png": "broken", "empty.png": "not a picture", "text.png": "not a picture", "none.png": "no such file"}
    for name, word in words.items():
        with pytest.raises(UserError, match=f"image=.*{name}.*{word}"):
            read_picture(tmp_path / name, "image")
    line = ["task=sample", "prior=gaussian", "prompt=a red ball", f"image={tmp_path}/cut.png"]
    code, _, _, err = launcher(*line, f"exp_root_dir={tmp_path}")
    assert code == 2 and "sample.image=" in err and "cut.png" in err and "Traceback" not in err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"good.png.*too large"):
        read_picture(good, "image")


def test_a_picture_is_scaled_until_it_covers_and_its_middle_kept() -> None:
    image = torch.zeros(1, 8, 24)
    image[:, :, 8:16] = 1
    assert torch.allclose(fitted(image, (8, 8), "image"), torch.ones(1, 1, 8, 8))
    small = fitted(image, (4, 4), "image")
    assert small.shape == (1, 1, 4, 4) and small.mean() > 0.9
    assert fitted(image, (16, 48), "image").mean() == pytest.approx(1 / 3, abs=0.02)
    assert torch.equal(fitted(image, (8, 24), "image"), image[None])
