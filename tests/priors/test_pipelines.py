"""Our sampling path against diffusers' own pipelines on folders with random weights: same initial latents, same noise.

Oracles: StableDiffusionPipeline (DDIM with eta 0 and 1, DDPM; eps and v), its img2img and inpainting pipelines, those
of Stable Diffusion 3. What runs here is what `task=sample` runs.

Seen to fail: a start from noise alone without a mask, or never; even times for SD3, its shift ignored; trailing times
for tables; strength rounded the other way; the start noised to the next level; the negative prompt, eta or the rescale
not passed on.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from threestudio_rf.app.build.sampling import plan, run
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.base import Prior

PROMPT, NEGATIVE = "a red mushroom", "a blue ball"
NUMBERS = (0, 1)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(prior: Prior, settings: SampleConfig, known: Tensor | None = None, **given: Any) -> Tensor:
    """The last latents of pictures 0 and 1 of seed 0; `known` stands for the encoded picture."""
    made = plan(prior, PROMPT, settings, negative_prompt=NEGATIVE, **given)
    made = dataclasses.replace(made, known=made.known if known is None else known)
    *_, last = run(made, NUMBERS)
    return last.x


def theirs(pipe: Any, settings: SampleConfig, stream: str = "fresh", **given: Any) -> Tensor:
    """The same by a pipeline that draws its noise from the same generators."""
    return pipe(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_images_per_prompt=len(NUMBERS),
        num_inference_steps=settings.steps,
        guidance_scale=settings.cfg,
        generator=[generator(0, i, stream) for i in NUMBERS],
        output_type="latent",
        **given,
    ).images


def start(prior: Prior) -> Tensor:
    """The initial latents of seed 0."""
    return torch.cat([normal((1, *prior.latent_shape), generator(0, i, "sample")) for i in NUMBERS])


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to float32 over a few steps, and not for being small or broken."""
    return bool(other.isfinite().all()) and float(other.std()) > 0.1 and float((one - other).abs().max()) < 1e-4


@pytest.fixture(scope="module")
def stable(sd_folder: Path, sd_v_folder: Path) -> dict[str, tuple[Prior, Any]]:
    """Adapter and pipeline of both kinds."""
    from diffusers import StableDiffusionPipeline

    from threestudio_rf.priors.sd import load_sd

    folders = {"eps": sd_folder, "v": sd_v_folder}
    return {
        kind: (load_sd(folder), quiet(StableDiffusionPipeline.from_pretrained(folder)))
        for kind, folder in folders.items()
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIMScheduler", SampleConfig(sampler="ddim", steps=7)),
        ("DDIMScheduler", SampleConfig(sampler="euler", steps=7, cfg=1.0)),
        ("DDIMScheduler", SampleConfig(sampler="ddim", steps=7, eta=1.0, rescale=0.6)),
        ("DDPMScheduler", SampleConfig(sampler="ddpm", steps=7)),
    ],
    ids=["ddim", "euler", "ddim-eta", "ddpm"],
)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_a_sample_of_stable_diffusion_is_that_of_its_pipeline(
    name: str, settings: SampleConfig, kind: str, stable: dict[str, tuple[Prior, Any]]
) -> None:
    import diffusers

    prior, pipe = stable[kind]
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    expected = theirs(pipe, settings, latents=start(prior), eta=settings.eta, guidance_rescale=settings.rescale)
    assert prior.kind == kind and close(ours(prior, settings), expected)


@pytest.mark.parametrize("settings", [SampleConfig(steps=7), SampleConfig(steps=3, cfg=1.0)], ids=["cfg", "plain"])
def test_a_sample_of_stable_diffusion_3_is_that_of_its_pipeline(settings: SampleConfig, sd3: Prior, pipe: Any) -> None:
    expected = theirs(pipe, settings, latents=start(sd3), max_sequence_length=0)
    assert close(ours(sd3, settings), expected)


def test_heun_on_stable_diffusion_3_is_flow_matching_heun(sd3: Prior, sd3_folder: Path) -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusion3Pipeline

    pipe = quiet(StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None))
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=pipe.scheduler.config.shift)
    settings = SampleConfig(sampler="heun", spacing="flow_match", steps=5)
    assert close(ours(sd3, settings), theirs(pipe, settings, latents=start(sd3), max_sequence_length=0))


@pytest.fixture(scope="module")
def narrow_folder(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD with the four latent channels that diffusers' img2img and inpainting pipelines insist on."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    from threestudio_rf.priors.folder.architecture import make_vae
    from threestudio_rf.priors.folder.architecture_sd import make_unet, save_sd

    folder = tmp_path_factory.mktemp("priors") / "narrow-sd"
    save_sd(
        folder,
        vae=make_vae((8, 8, 16, 16), latent_channels=4, groups=4, scaling=1.5, seed=3),
        unet=make_unet(16, channels=(16, 24), latent_channels=4, heads=2, seed=4),
        text_encoder=CLIPTextModel.from_pretrained(sd_folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(sd_folder / "tokenizer"),
    )
    assert DDIMScheduler.from_pretrained(folder / "scheduler").config.steps_offset == 1
    return folder


@pytest.fixture(scope="module")
def narrow(narrow_folder: Path) -> Prior:
    from threestudio_rf.priors.sd import load_sd

    return load_sd(narrow_folder)


def latents_of(prior: Prior) -> Tensor:
    """Something to start from."""
    return 0.7 * normal((1, *prior.latent_shape), generator(0, 0, "known"))


PICTURE = torch.linspace(0, 1, 3 * 64 * 64).reshape(3, 64, 64)


@pytest.mark.parametrize(("steps", "strength"), [(7, 0.5), (4, 0.9), (4, 1.0)])
def test_a_start_from_a_picture_is_that_of_the_img2img_pipelines(
    steps: int, strength: float, narrow: Prior, narrow_folder: Path, sd3: Prior, sd3_folder: Path
) -> None:
    from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline

    small = quiet(StableDiffusionImg2ImgPipeline.from_pretrained(narrow_folder))
    none = {"text_encoder_3": None, "tokenizer_3": None}
    large = quiet(StableDiffusion3Img2ImgPipeline.from_pretrained(sd3_folder, **none))
    settings = SampleConfig(steps=steps, strength=strength)
    for prior, pipe, more in ((narrow, small, {}), (sd3, large, {"max_sequence_length": 0, "height": 64, "width": 64})):
        known = latents_of(prior)
        both = known.repeat(2, 1, 1, 1)
        expected = theirs(pipe, settings, stream="sample", image=both, strength=strength, **more)
        assert close(ours(prior, settings, known, image=PICTURE), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_masked_picture_is_that_of_the_inpainting_pipelines(
    strength: float, narrow: Prior, narrow_folder: Path, sd3: Prior, sd3_folder: Path
) -> None:
    from diffusers import StableDiffusion3InpaintPipeline, StableDiffusionInpaintPipeline

    small = quiet(StableDiffusionInpaintPipeline.from_pretrained(narrow_folder))
    none = {"text_encoder_3": None, "tokenizer_3": None}
    large = quiet(StableDiffusion3InpaintPipeline.from_pretrained(sd3_folder, **none))
    settings = SampleConfig(steps=5, strength=strength)
    mask = torch.zeros(1, 64, 64)
    mask[:, 10:40, 21:] = 1
    for prior, pipe, more in ((narrow, small, {}), (sd3, large, {"max_sequence_length": 0})):
        known = latents_of(prior)
        given = {"image": known, "mask_image": mask[None], "masked_image_latents": known, "strength": strength}
        expected = theirs(pipe, settings, stream="sample", **given, height=64, width=64, **more)
        got = ours(prior, settings, known, image=PICTURE, mask=mask)
        assert close(got, expected)
        outside = torch.nn.functional.interpolate(mask[None], size=known.shape[-2:])[0, 0] == 0
        assert torch.equal(got[:, :, outside], known.expand_as(got)[:, :, outside])


def test_the_shift_of_the_folder_is_the_one_that_is_used(sd3_folder: Path, tmp_path: Path) -> None:
    from threestudio_rf.app.build.sampling import grid_of
    from threestudio_rf.core.times import flow_match_spacing, spacing
    from threestudio_rf.priors.sd3 import load_sd3

    folder = shutil.copytree(sd3_folder, tmp_path / "shifted")
    file = folder / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace('"shift": 3.0', '"shift": 2.5'))
    prior = load_sd3(folder)
    assert torch.equal(grid_of(prior, SampleConfig(steps=6)).times, flow_match_spacing(6, shift=2.5))
    assert torch.equal(grid_of(prior, SampleConfig(steps=6, shift=4.0)).times, flow_match_spacing(6, shift=4.0))
    assert torch.equal(grid_of(prior, SampleConfig(steps=6, spacing="even")).times, spacing(6, shift=2.5))
