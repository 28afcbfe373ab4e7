"""LoRAs, differences, float8, offloading, float16 on every adapter of a folder; distilled networks told by their names.

Seen to fail: changes kept from the text encoders.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import BUILDERS
from oracles import opened
from safetensors.torch import load_file, save_file

from threestudio_rf.core.random import generator, normal
from threestudio_rf.priors.adapters.distilled import warn_distilled
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.facts import FACTS
from threestudio_rf.priors.folder.parts import FolderParts

PROMPT = "a red ball"
Folders = Callable[[str], Path]


def network_file(kind: str, folder: Path) -> Path:
    part = import_module(f"threestudio_rf.priors.adapters.{kind}").ADAPTER.network[0]
    return next((folder / part).glob("*.safetensors"))


def answer(prior: Any) -> torch.Tensor:
    x = normal((1, *prior.latent_shape), generator(0, 0, "x"))
    found: torch.Tensor = prior.predict(x, torch.tensor([0.6]), prior.embed([PROMPT]))
    return found


def halves(shape: torch.Size, rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    draws = generator(0, 0, "lora")
    return torch.randn(rank, shape[1], generator=draws), torch.randn(shape[0], rank, generator=draws)


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if "lora" in FACTS[kind].reads])
def test_a_lora_is_the_sum_by_hand_and_half_a_one_or_one_of_another_network_is_refused(
    kind: str, adapted: Folders, tmp_path: Path
) -> None:
    folder = adapted(kind)
    part, state = network_file(kind, folder).parent.name, load_file(network_file(kind, folder))
    layer = next(key for key in sorted(state) if "att" in key and state[key].ndim == 2).removesuffix(".weight")
    a, b = halves(state[f"{layer}.weight"].shape)
    file = tmp_path / "style.safetensors"
    save_file({f"{part}.{layer}.lora_A.weight": a, f"{part}.{layer}.lora_B.weight": b}, file)
    prior = opened(kind, folder, lora=f"{file}:0.5")
    found = prior.network.state_dict()
    torch.testing.assert_close(found.pop(f"{layer}.weight"), state[f"{layer}.weight"] + 0.5 * b @ a)
    assert all(torch.equal(found[key], state[key]) for key in found.keys() & state.keys())
    assert (answer(prior) - answer(opened(kind, folder))).abs().max() > 1e-4
    save_file({f"{part}.{layer}.lora_A.weight": a}, file)
    with pytest.raises(PriorError, match=rf"^prior\.lora={file}: half a LoRA: .* has no lora_B"):
        opened(kind, folder, lora=str(file))
    save_file({f"{part}.none.{layer}.lora_A.weight": a, f"{part}.none.{layer}.lora_B.weight": b}, file)
    with pytest.raises(PriorError, match=rf"^prior\.lora={file}.*another model"):
        opened(kind, folder, lora=str(file))


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_difference_leads_from_one_network_to_the_other(kind: str, adapted: Folders, tmp_path: Path) -> None:
    folder = adapted(kind)
    file = network_file(kind, folder)
    (tmp_path / file.parent.name).mkdir()
    shutil.copy(file.parent / "config.json", tmp_path / file.parent.name)
    moved = {key: x + 0.1 * torch.randn(x.shape, generator=generator(0, 0, key)) for key, x in load_file(file).items()}
    save_file(moved, tmp_path / file.parent.name / file.name, metadata={"format": "pt"})
    network = opened(kind, folder, delta=str(tmp_path)).network.state_dict()
    for key, x in moved.items():
        torch.testing.assert_close(network[key], x)


def test_a_lora_of_sdxls_text_encoders_changes_texts_and_their_place_in_the_cache(
    adapted: Folders, tmp_path: Path
) -> None:
    folder, cache = adapted("sdxl"), tmp_path / "texts"
    plain = opened("sdxl", folder, cache=str(cache)).embed([PROMPT]).tensors
    for i, (part, changed) in enumerate({"text_encoder": ["prompt"], "text_encoder_2": ["prompt", "pooled"]}.items()):
        state = load_file(folder / part / "model.safetensors")
        key = next(key for key in sorted(state) if key.endswith("layers.0.self_attn.q_proj.weight"))
        a, b = halves(state[key].shape)
        name = f"{part}.text_model.{key.removesuffix('.weight').removeprefix('text_model.')}"
        file = tmp_path / f"{part}.safetensors"
        save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, file)
        found = opened("sdxl", folder, cache=str(cache), lora=str(file)).embed([PROMPT]).tensors
        assert [key for key in plain if not torch.equal(found[key], plain[key])] == changed
        assert len(list(cache.iterdir())) == 2 + i


@pytest.mark.parametrize("kind", BUILDERS)
def test_float8_moves_an_answer_little_and_offloading_moves_neither_answer_nor_gradient(
    kind: str, adapted: Folders
) -> None:
    folder = adapted(kind)
    plain, small, away = (opened(kind, folder, **more) for more in ({}, {"storage": "fp8"}, {"offload": True}))
    wanted = answer(plain)
    assert torch.equal(answer(opened(kind, folder, offload_blocks=1)), wanted)
    assert torch.float8_e4m3fn in {weight.dtype for weight in small.network.parameters()}
    assert 1e-4 < (answer(small) - wanted).norm() / wanted.norm() < 0.2
    gradients = []
    for prior in (plain, away):
        image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image")).requires_grad_()
        latents = prior.encode(image)
        assert torch.equal(answer(prior), wanted)
        latents.square().sum().backward()
        gradients.append(image.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("kind", BUILDERS)
def test_int8_moves_an_answer_little(kind: str, adapted: Folders) -> None:
    plain, small = (opened(kind, adapted(kind), **more) for more in ({}, {"quantization": "int8"}))
    assert any("Int8" in type(weight).__name__ for weight in small.network.parameters())
    assert 1e-5 < (answer(small) - answer(plain)).norm() / answer(plain).norm() < 0.05


@pytest.mark.parametrize("kind", ["sana", "qwen_image"])
def test_a_deep_encoder_computes_its_blocks_again_one_after_the_other(kind: str, adapted: Folders) -> None:
    """From the last to the first: no two of them are in memory at once."""
    prior = opened(kind, adapted(kind), vae_checkpointing=True)
    prior.load()
    order: list[int] = []
    for i, block in enumerate(prior.parts.vae.encoder.down_blocks):
        block.layer.register_forward_pre_hook(lambda *_, i=i: order.append(i))
    image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image")).requires_grad_()
    latents = prior.encode(image)
    n = len(order)
    assert n > 3 and order == [*range(n)]
    latents.square().sum().backward()
    assert order[n:] == [*reversed(range(n))]


def test_the_vae_of_wan_stands_for_qwens(adapted: Folders, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    folder = shutil.copytree(adapted("qwen_image"), tmp_path / "wan")
    shutil.rmtree(folder / "vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        vae = AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[0.5] * 4
        )
    vae.save_pretrained(folder / "vae")
    image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image"))
    found = []
    for checkpointing in (False, True):
        prior, given = opened("qwen_image", folder, vae_checkpointing=checkpointing), image.clone().requires_grad_()
        latents = prior.encode(given)
        latents.square().sum().backward()
        found.append((latents.detach(), given.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True)) and found[0][1].abs().max() > 0
    z = vae.eval().encode((2 * image - 1)[:, :, None]).latent_dist.mode()
    torch.testing.assert_close(found[0][0], (z[:, :, 0] - 0.1) / 0.5, rtol=1e-5, atol=1e-5)
    shown = (vae.decode(z).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(prior.decode(found[0][0]), shown, rtol=1e-4, atol=1e-4)


def test_sdxls_latents_have_the_mean_and_deviation_of_their_channels_where_the_vae_says_so(
    adapted: Folders, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = shutil.copytree(adapted("sdxl"), tmp_path / "sdxl")
    file, mean, std = folder / "vae/config.json", [0.5, -0.3, 0.2, -0.1], [1.5, 0.8, 2.0, 0.6]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"latents_mean": mean, "latents_std": std}))
    prior, pipe = opened("sdxl", folder), StableDiffusionXLPipeline.from_pretrained(folder)
    latents = normal((1, *prior.latent_shape), generator(0, 0, "x"))
    given = {"latents": latents, "height": 64, "width": 64, "num_inference_steps": 1, "guidance_scale": 3.0}
    ends = [pipe(prompt=PROMPT, output_type=kind, **given).images for kind in ("latent", "pt")]
    torch.testing.assert_close(prior.decode(ends[0]), ends[1], rtol=0, atol=1e-5)
    image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image"))
    z, scale = prior.parts.vae.encode(2 * image - 1).latent_dist.mode(), prior.parts.vae.config.scaling_factor
    wanted = (z - torch.tensor(mean).view(1, 4, 1, 1)) * scale / torch.tensor(std).view(1, 4, 1, 1)
    torch.testing.assert_close(prior.encode(image), wanted, rtol=1e-5, atol=1e-6)


def test_in_float16_sdxls_vae_computes_in_float32(adapted: Folders) -> None:
    plain = opened("sdxl", adapted("sdxl"))
    image = torch.rand(1, 3, 64, 64, generator=generator(0, 0, "image"))
    at = plain.parts
    half = FolderParts(at.places, at.network_at, device=at.device, dtype=torch.float16, shifted=True)
    assert {weight.dtype for weight in half.network.parameters()} == {torch.float16}
    assert torch.equal(half.encode(image), plain.encode(image))


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_missing_text_encoder_or_tokenizer_is_named(kind: str, adapted: Folders, tmp_path: Path) -> None:
    part = [*import_module(f"threestudio_rf.priors.adapters.{kind}").ADAPTER.text.encoders][-1]
    for missing, words in ((part.replace("text_encoder", "tokenizer"), "is missing"), (part, "holds no weights")):
        folder = tmp_path / missing
        folder.mkdir()
        for child in adapted(kind).iterdir():
            if child.name != missing:
                (folder / child.name).symlink_to(child)
        with pytest.raises(PriorError, match=rf"{folder / missing} {words}"):
            opened(kind, folder, cache=str(tmp_path / "texts")).embed([PROMPT])


# Distilled networks


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., Path]:
    """A folder whose two files say so."""

    def write(index: dict[str, Any] | None = None, network: dict[str, Any] | None = None) -> Path:
        (tmp_path / "transformer").mkdir(exist_ok=True)
        (tmp_path / "model_index.json").write_text(json.dumps(index or {}))
        (tmp_path / "transformer/config.json").write_text(json.dumps(network or {}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/sdxl-turbo",
        "black-forest-labs/FLUX.1-schnell",
        "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",
        "ByteDance/SDXL-Lightning",
        "ByteDance/Hyper-SD",
        "latent-consistency/lcm-sdxl",
        "tianweiy/DMD2",
        "lodestones/Chroma1-Flash",
        "owner/model-4-step",
        "owner/model_8steps",
    ],
)
def test_a_network_of_few_steps_is_told_by_its_name_wherever_that_stands(name: str, said: Any) -> None:
    words = "few steps, not along the path.*score distillation compares.*Use its base model"
    for folder, path in (
        (said(), name),
        (said({"_name_or_path": name}), "local"),
        (said(None, {"_name_or_path": name}), "local"),
    ):
        with pytest.warns(UserWarning, match=words):
            warn_distilled(folder, path, "transformer")


@pytest.mark.parametrize(
    "name",
    [
        "stabilityai/stable-diffusion-xl-base-1.0",
        "black-forest-labs/FLUX.2-klein-base-4B",
        "Tongyi-MAI/Z-Image",
        "Photoroom/prx-512-t2i-sft",
        "Qwen/Qwen-Image",
        "lodestones/Chroma1-Base",
    ],
)
def test_a_base_model_is_not_warned_of(name: str, said: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_distilled(said({"is_distilled": False}, {"guidance_embeds": False}), name, "transformer")


def test_guidance_inside_the_network_is_refused_and_a_distilled_pipeline_warned_of(said: Any) -> None:
    with pytest.raises(PriorError, match=r"told its guidance scale: its guidance is built into the field.*base model"):
        warn_distilled(said(None, {"guidance_embeds": True}), "local", "transformer")
    with pytest.warns(UserWarning, match=r"is_distilled in its model_index\.json.*built into the field"):
        warn_distilled(said({"is_distilled": True}), "local", "transformer")


def test_a_folder_that_asks_for_its_guidance_scale_is_refused_by_its_prior(adapted: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(adapted("flux2_klein"), tmp_path / "klein")
    file = folder / "transformer/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_embeds": True}))
    with pytest.raises(PriorError, match="told its guidance scale"):
        opened("flux2_klein", folder)
