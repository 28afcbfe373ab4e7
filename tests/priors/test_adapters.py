"""Every adapter of a folder against the pipeline of diffusers that the folder belongs to, on random weights.

One test for all: two denoising steps and the picture equal the pipeline's, ragged prompts, the caller's list, the
gradient through the encoder, labels and levels, embedding and freeing, the cache, folders of every other kind.

Seen to fail: Sana's instruction left out, added to the empty text; SDXL's empty text embedded; Z-Image not negated;
PRXPixel's noise of deviation 1 at the start, its velocity without its clamp; levels of the time that is told where a
network rounds it in bfloat16.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BUILDERS
from oracles import CASES, opened, unpacked

from threestudio_rf.app.build.prior import ADAPTERS
from threestudio_rf.app.build.sampling import plan, run
from threestudio_rf.app.settings.groups import SampleConfig
from threestudio_rf.core.convert import noise, split
from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.adapters import prx_pixel
from threestudio_rf.priors.base import Condition, PriorError
from threestudio_rf.priors.facts import FACTS

NEW = tuple(BUILDERS)
PROMPT, LONG = "a red ball", "a blue mushroom a green barrel front view"
TIMES = torch.tensor([0.0577, 0.3337, 0.9802])


@pytest.fixture(scope="session")
def folders(sd_folder: Path, sd3_folder: Path, adapted: Callable[[str], Path]) -> dict[str, Path]:
    """One folder per kind."""
    return {"sd": sd_folder, "sd3": sd3_folder} | {kind: adapted(kind) for kind in BUILDERS}


@pytest.fixture(scope="session")
def priors(folders: dict[str, Path]) -> dict[str, Any]:
    """One prior per kind, in float32."""
    return {kind: opened(kind, folder) for kind, folder in folders.items()}


def pipeline_of(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    import diffusers

    names = {"sd": "StableDiffusionPipeline", "sd3": "StableDiffusion3Pipeline"}
    name = names.get(kind) or import_module(f"threestudio_rf.priors.adapters.{kind}").ADAPTER.pipeline
    pipe = getattr(diffusers, name).from_pretrained(folder, dtype=dtype, **dict.fromkeys(CASES[kind].free))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("kind", CASES)
def test_two_steps_and_the_picture_are_those_of_the_pipeline(
    kind: str, folders: dict[str, Path], priors: dict[str, Any]
) -> None:
    case, prior, pipe = CASES[kind], priors[kind], pipeline_of(kind, folders[kind])
    eps = normal((1, *prior.latent_shape), generator(0, 0, "sample"))
    size = {"height": 64, "width": 64, "num_inference_steps": 2}
    given = {"latents": case.packed(eps), **size, **case.given}
    *_, ours = run(plan(prior, PROMPT, SampleConfig(steps=2, cfg=case.cfg)), [0])
    theirs = case.opened(pipe(prompt=PROMPT, output_type="latent", **given).images, pipe)
    assert theirs.std() > 0.1 and (ours.x - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())
    picture = case.shown(pipe(prompt=PROMPT, output_type="pt", **given).images)
    torch.testing.assert_close(prior.decode(ours.x), picture, rtol=0, atol=1e-4)
    assert picture.std() > 1e-3


@pytest.mark.parametrize("kind", CASES)
def test_two_steps_in_bfloat16_are_those_of_the_pipeline_but_for_rounding(kind: str, folders: dict[str, Path]) -> None:
    case, prior = CASES[kind], opened(kind, folders[kind], dtype="bf16")
    pipe = pipeline_of(kind, folders[kind], torch.bfloat16)
    eps = normal((1, *prior.latent_shape), generator(0, 0, "sample")).bfloat16().float()
    size = {"height": 64, "width": 64, "num_inference_steps": 2}
    given = {"latents": case.packed(eps).bfloat16(), **size, **case.given}
    *_, ours = run(
        plan(prior, PROMPT, SampleConfig(steps=2, cfg=case.cfg)),
        [0],
        latents=eps * prior.pipeline.times(2, sampler=prior.pipeline.sampler).start,
    )
    theirs = case.opened(pipe(prompt=PROMPT, output_type="latent", **given).images.float(), pipe.to(torch.float32))
    assert (ours.x - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize("kind", NEW)
def test_a_step_of_a_wide_picture_is_that_of_the_pipeline(
    kind: str, folders: dict[str, Path], priors: dict[str, Any]
) -> None:
    case, prior, pipe = CASES[kind], priors[kind], pipeline_of(kind, folders[kind])
    channels, h, w = prior.latent_shape
    eps = normal((1, channels, h, 2 * w), generator(0, 0, "wide"))
    given = {"latents": case.packed(eps), "height": 64, "width": 128, "num_inference_steps": 1, **case.given}
    planned = plan(prior, PROMPT, SampleConfig(steps=1, cfg=case.cfg))
    *_, ours = run(planned, [0], latents=planned.grid.start * eps)
    found = pipe(prompt=PROMPT, output_type="latent", **given).images
    theirs = unpacked(found, pipe, wide=2) if case.opened is unpacked else case.opened(found, pipe)
    assert theirs.shape == eps.shape and (ours.x - theirs).abs().max() < 1e-5 * max(1, theirs.abs().max())


def test_two_steps_of_instaflow_are_those_of_its_authors(folders: dict[str, Path]) -> None:
    """gnobitab/InstaFlow: x <- x + v / n from noise, v = uncond + s (cond - uncond) told 1000 (1 - i / n)."""
    prior, pipe = opened("instaflow", folders["sd"]), pipeline_of("sd", folders["sd"])
    x = normal((1, *prior.latent_shape), generator(0, 0, "sample"))
    texts = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (PROMPT, "")]
    for told in (1000.0, 500.0):
        cond, uncond = (pipe.unet(x, told, encoder_hidden_states=text).sample.detach() for text in texts)
        x = x + (uncond + 1.5 * (cond - uncond)) / 2
    *_, ours = run(plan(prior, PROMPT, SampleConfig(steps=2, cfg=1.5, spacing="even")), [0])
    torch.testing.assert_close(ours.x, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_encoded_is_decoded_as_by_the_vae_alone(kind: str, priors: dict[str, Any]) -> None:
    prior = priors[kind]
    image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image"))
    latents, vae = prior.encode(image), prior.parts.vae
    if isinstance(vae, torch.nn.Identity):
        assert torch.equal(latents, 2 * image - 1) and torch.equal(prior.decode(latents), image)
        return
    frames = "QwenImage" in type(vae).__name__
    said = vae.encode((2 * image - 1)[:, :, None] if frames else 2 * image - 1)
    z = said.latent if "DC" in type(vae).__name__ else said.latent_dist.mode()
    shown = vae.decode(z).sample[:, :, 0] if frames else vae.decode(z).sample
    torch.testing.assert_close(prior.decode(latents), (shown / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)
    assert latents.shape == (1, *prior.latent_shape) and latents.std() > 1e-3


def test_below_its_cleanest_time_prx_pixel_walks_along_the_velocity_of_its_pipeline_too() -> None:
    """(x_t - x0) / max(t, 0.05), as the flow of which the same step is made; at t = 0 it is finite."""
    draws = generator(0, 0, "walk")
    x0, x_t = (normal((3, 3, 4, 4), draws, dtype=torch.float64) for _ in range(2))
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.02, 0.3, 0.05], [0.01, 0.1, 0.0]))
    v = (x_t - x0) / t.clamp(min=0.05)[:, None, None, None]
    path = prx_pixel.ADAPTER.path
    found = noise(*split("flow", prx_pixel.read(x0, x_t, t), x_t, path(t)), path(s))
    torch.testing.assert_close(found, x_t + (s - t)[:, None, None, None] * v)
    assert prx_pixel.read(x0, x_t, torch.zeros(3).double()).isfinite().all()


def kept_by(work: Callable[[], None]) -> int:
    """Bytes that `work` keeps for its way back."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_the_gradient_of_a_picture_is_finite_and_not_zero_also_when_it_is_computed_twice(
    kind: str, checkpointing: bool, folders: dict[str, Path], priors: dict[str, Any]
) -> None:
    own = "vae_checkpointing" in FACTS[kind].reads
    prior = opened(kind, folders[kind], vae_checkpointing=True) if checkpointing and own else priors[kind]
    image = (2 * torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image")) - 0.5).requires_grad_()
    kept = kept_by(lambda: prior.encode(image).square().sum().backward())
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.ne(0).double().mean() > 0.9
    if checkpointing:
        again = image.detach().requires_grad_()
        more = kept_by(lambda: priors[kind].encode(again).square().sum().backward())
        assert not own or kept < 0.8 * more
        torch.testing.assert_close(image.grad, again.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CASES)
def test_ragged_prompts_are_what_they_are_alone(kind: str, priors: dict[str, Any]) -> None:
    prior, prompts = priors[kind], [PROMPT, LONG, ""]
    both = prior.embed(prompts)
    assert prompts == [PROMPT, LONG, ""]
    x = normal((3, *prior.latent_shape), generator(0, 0, "x"))
    together = prior.predict(x, TIMES, both)
    for i, prompt in enumerate(prompts):
        alone = prior.predict(x[i : i + 1], TIMES[i : i + 1], prior.embed([prompt]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    swapped = prior.predict(x, TIMES, both.select([1, 2, 0]))
    assert together.shape == x.shape and all((together - swapped).flatten(1).abs().amax(1) > 1e-4)


@pytest.mark.parametrize("kind", NEW)
def test_padding_is_seen_only_where_the_pipeline_shows_it(kind: str, priors: dict[str, Any]) -> None:
    prior, condition = priors[kind], priors[kind].embed([PROMPT])
    x, t = normal((1, *prior.latent_shape), generator(0, 0, "x")), torch.tensor([0.5])
    plain, prompt = prior.predict(x, t, condition), condition.tensors["prompt"]
    other = normal(tuple(prompt.shape), generator(0, 0, "padding"))
    if "mask" not in condition.tensors:  # all of the padding is read: FLUX.2's 512 tokens, CLIP's window
        assert prompt.shape[1] == {"flux2_klein": 512, "sdxl": 16}[kind]
        prompt = prompt.clone()
        prompt[:, -1] = other[:, -1]
        changed = prior.predict(x, t, Condition(condition.tensors | {"prompt": prompt}))
        assert (changed - plain).abs().max() > 1e-6
        return
    mask = condition.tensors["mask"]
    assert mask.any() and not mask.all()
    filled = torch.where(mask[..., None], prompt, other)
    found = prior.predict(x, t, Condition({"prompt": filled, "mask": mask}))
    if kind == "chroma":  # its mask is a number that its attention adds: padding counts less, not nothing
        assert (found - plain).abs().max() > 1e-4
    else:
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    bare = prior.predict(x, t, Condition({"prompt": filled, "mask": torch.ones_like(mask)}))
    assert (bare - plain).abs().max() > 1e-4


class Clock:
    """What the time embedding of a network hears."""

    def __init__(self, network: torch.nn.Module, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[torch.Tensor] = []
        if path:
            network.get_submodule(path).register_forward_pre_hook(lambda _, given: self.heard.append(given[0].clone()))
            return
        from diffusers.models.transformers import transformer_prx as module

        inner = module.get_timestep_embedding
        monkeypatch.setattr(module, "get_timestep_embedding", lambda **given: self._note(inner, given))

    def _note(self, inner: Any, given: dict[str, Any]) -> Any:
        self.heard.append(given["timesteps"].clone())
        return inner(**given)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", CASES)
def test_what_the_network_hears_is_what_the_latents_are_noised_with(
    kind: str, dtype: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = opened(kind, folders[kind], dtype=dtype)
    clock = Clock(prior.network, CASES[kind].clock, monkeypatch)
    x = normal((3, *prior.latent_shape), generator(0, 0, "x"))
    prior.predict(x, TIMES, prior.embed([PROMPT] * 3))
    heard = CASES[kind].clean(clock.heard[0].double())
    level, told = prior.schedule(TIMES.double()), prior.schedule(heard)
    tolerance = {"rtol": 0, "atol": 2e-7}
    if prior.schedule.table is None and kind in NEW and prior.adapter.hear is not None:
        told = prior.adapter.path(heard)
        assert dtype == "fp32" or (heard - TIMES).abs().max() > 1e-4
    else:
        torch.testing.assert_close(heard, TIMES.double(), rtol=0, atol=2e-7 if prior.schedule.table is None else 6e-4)
    torch.testing.assert_close(told.sigma, level.sigma, **tolerance)
    torch.testing.assert_close(told.alpha, level.alpha, **tolerance)


@pytest.mark.parametrize("kind", NEW)
def test_texts_are_embedded_before_anything_else_loads_freed_and_found_again(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threestudio_rf.priors.adapters import text as module

    load, alive = module.load_part, []

    def noted(*given: Any, **more: Any) -> Any:
        part = load(*given, **more)
        alive.append(weakref.ref(part))
        return part

    monkeypatch.setattr(module, "load_part", noted)
    first = opened(kind, folders[kind], cache=str(tmp_path / "texts"))
    condition = first.embed([PROMPT, "", PROMPT])
    gc.collect()
    assert alive and not any(one() for one in alive) and not first.parts.loaded
    assert len(list((tmp_path / "texts").iterdir())) == 2
    monkeypatch.setattr(module, "load_part", lambda *given, **more: pytest.fail("a text encoder was loaded"))
    again = opened(kind, folders[kind], cache=str(tmp_path / "texts"))
    for name, tensor in again.embed([PROMPT, "", PROMPT]).tensors.items():
        assert torch.equal(tensor, condition.tensors[name])
    again.load()
    assert set(again.parts.loaded) == {"network", "vae"}


@pytest.mark.parametrize("kind", CASES)
def test_a_condition_without_what_the_network_reads_and_batches_of_other_sizes_are_errors(
    kind: str, priors: dict[str, Any]
) -> None:
    prior, condition = priors[kind], priors[kind].embed([PROMPT])
    x, t = normal((1, *prior.latent_shape), generator(0, 0, "x")), torch.tensor([0.5])
    for name in condition.tensors:
        some = {key if key != name else "other": tensor for key, tensor in condition.tensors.items()}
        with pytest.raises(ValueError, match=rf"condition: got 1 prompts .*expected 1 with .*{name}"):
            prior.predict(x, t, Condition(some))
    with pytest.raises(ValueError, match="got 1 prompts"):
        prior.predict(x.repeat(2, 1, 1, 1), t.repeat(2), condition)
    with pytest.raises(ValueError, match="latents: got"):
        prior.predict(x[:, 1:], t, condition)


ADVICE = {"sd": r"use prior=sd \(prior=instaflow for a rectified flow\)"}


@pytest.mark.parametrize("wrong", [*CASES, "instaflow"])
@pytest.mark.parametrize("kind", CASES)
def test_a_folder_of_another_kind_is_refused_with_the_prior_to_choose(
    kind: str, wrong: str, folders: dict[str, Path]
) -> None:
    if kind == wrong or (kind, wrong) == ("sd", "instaflow"):
        opened(wrong, folders[kind])
        return
    with pytest.raises(PriorError, match=ADVICE.get(kind, rf"use prior={kind}$")):
        opened(wrong, folders[kind])


def test_every_prior_of_a_folder_has_its_row_here() -> None:
    adapted = {name for name, facts in FACTS.items() if facts.adapter not in ADAPTERS}
    assert adapted == set(NEW) and set(CASES) == adapted | {"sd", "sd3"}
