"""Broken and wrong folders are refused with a text for the user, alike for SD and SD3.

Mutations tried, each seen to fail: the comparison of keys dropped; the finite sum dropped; headers not opened before
loading; .bin accepted; the class name of model_index.json trusted instead of the parts; names of older files unknown,
or only their prefix known.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.load import variant_files, variant_of
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

TEXT = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


class Case(NamedTuple):
    """A folder that may be damaged, its loader, the files and some keys of its network and text encoder."""

    folder: Path
    load: Callable
    network: str
    keys: dict[str, str]

    def use(self, **options):
        prior = self.load(self.folder, **options)
        prior.embed(["red"])
        prior.load()
        return prior

    def refused(self, **options):
        with pytest.raises(PriorError) as caught:
            self.use(**options)
        return str(caught.value)


@pytest.fixture(params=["sd", "sd3"])
def case(request, tmp_path, sd_folder, sd3_folder):
    folder, load, network, network_key, text_key = {
        "sd": (sd_folder, load_sd, "unet", "conv_out.weight", "final_layer_norm.weight"),
        "sd3": (sd3_folder, load_sd3, "transformer", "proj_out.weight", "text_projection.weight"),
    }[request.param]
    network = f"{network}/diffusion_pytorch_model.safetensors"
    keys = {network: network_key, TEXT: text_key, VAE: "encoder.conv_in.bias"}
    return Case(shutil.copytree(folder, tmp_path / "prior"), load, network, keys)


def change(file, edit):
    """Rewrite a weight file by `edit`, a function from one table of tensors to another."""
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def without(key):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name != key}


def first_is(key, value):
    def edit(tensors):
        tensors[key].view(-1)[0] = value
        return tensors

    return edit


def test_a_missing_key_is_named_for_every_part(case):
    for file, key in case.keys.items():
        whole = (case.folder / file).read_bytes()
        change(case.folder / file, without(key))
        text = case.refused()
        assert "1 keys missing" in text and key in text and str((case.folder / file).parent) in text
        (case.folder / file).write_bytes(whole)
    case.use()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(case, value):
    for file, key in case.keys.items():
        whole = (case.folder / file).read_bytes()
        change(case.folder / file, first_is(key, value))
        text = case.refused()
        assert "not finite" in text and key in text
        (case.folder / file).write_bytes(whole)


def test_a_wrong_shape_is_named_with_both_shapes(case):
    for file, key in case.keys.items():
        whole = (case.folder / file).read_bytes()
        change(case.folder / file, lambda tensors, key=key: tensors | {key: torch.zeros(3, 5)})
        text = case.refused()
        assert f"{key}: got (3, 5), expected (" in text and len(text) < 400
        (case.folder / file).write_bytes(whole)


def test_truncated_empty_and_pointer_weights_are_told_apart_before_anything_loads(case):
    for file in case.keys:
        whole = (case.folder / file).read_bytes()
        for content, words in (
            (whole[: len(whole) // 2], f"({len(whole) // 2} bytes) is empty, truncated or damaged"),
            (b"", "(0 bytes) is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        ):
            (case.folder / file).write_bytes(content)
            with pytest.raises(PriorError) as caught:
                case.load(case.folder)
            assert words in str(caught.value) and file in str(caught.value)
        (case.folder / file).write_bytes(whole)


def test_pickled_weights_are_never_read(case, tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (case.folder / case.network).unlink()
    (case.folder / case.network).with_suffix(".bin").write_bytes(pickle.dumps(Canary()))
    assert "pickled weights (diffusion_pytorch_model.bin)" in case.refused()
    assert not (tmp_path / "canary").exists()


def test_custom_code_in_a_folder_does_not_run(case, tmp_path, change_json):
    canary, network = tmp_path / "canary", case.network.partition("/")[0]
    (case.folder / "pipeline.py").write_text(f"open({str(canary)!r}, 'w')\n")
    cls = json.loads((case.folder / "model_index.json").read_text())[network][1]
    change_json(case.folder / "model_index.json", _class_name=["pipeline", "Mine"], **{network: ["pipeline", cls]})
    case.use()
    assert not canary.exists()


def test_a_folder_of_another_kind_names_the_prior_to_choose(copied, copied_sd):
    for folder, load, found, advice in (
        (copied, load_sd, "StableDiffusion3Pipeline", "use prior=sd3"),
        (copied_sd, load_sd3, "StableDiffusionPipeline", "use prior=sd (prior=instaflow for a rectified flow)"),
    ):
        with pytest.raises(PriorError) as caught:
            load(folder)
        assert found in str(caught.value) and advice in str(caught.value)


def test_a_folder_that_is_no_whole_folder_is_told_so(case):
    index = case.folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "Foreign"}))
    assert "no adapter" in case.refused()
    index.write_text("{")
    assert "model_index.json cannot be read" in case.refused()
    index.unlink()
    assert "holds no model_index.json" in case.refused()


def test_a_part_that_is_missing_is_named(case):
    shutil.rmtree(case.folder / "vae")
    assert "vae holds no weights" in case.refused()


def test_a_variant_is_used_where_a_part_has_it_and_the_only_one_there_is_told(case):
    plain = case.folder / case.network
    for file in (case.network, VAE):
        (case.folder / file).rename((case.folder / file).with_suffix(".fp16.safetensors"))
    with pytest.warns(UserWarning, match="holds the variant fp16 alone: it is used"):
        taken = case.use()
    x, t = torch.full((1, *taken.latent_shape), 0.1), torch.tensor([0.5])
    asked = case.use(variant="fp16")
    condition = asked.embed(["red"])
    assert torch.equal(taken.predict(x, t, condition), asked.predict(x, t, condition))
    shutil.copyfile(plain.with_suffix(".fp16.safetensors"), plain.with_suffix(".non_ema.safetensors"))
    assert "holds the variants fp16, non_ema: choose one by prior.variant=" in case.refused()
    case.use(variant="non_ema")
    plain.with_suffix(".fp16.safetensors").rename(plain)
    assert variant_of(plain.parent, None) is None and variant_of(plain.parent, "../x") is None


def test_the_names_of_shards_say_their_variant(tmp_path):
    names = {
        "model.safetensors": "",
        "model-00001-of-00002.safetensors": "",
        "model.fp16-00001-of-00002.safetensors": "fp16",
        "model-00002-of-00002.fp16.safetensors": "fp16",
        "diffusion_pytorch_model.non_ema.safetensors": "non_ema",
    }
    for name in names:
        (tmp_path / name).touch()
    found = variant_files(tmp_path)
    assert {file.name: variant for variant, files in found.items() for file in files} == names


def test_a_folder_of_the_first_versions_of_the_libraries_loads_the_same_and_is_checked_too(copied_sd, sd, change_json):
    def older_text(tensors):
        ids = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
        return {f"text_model.{key}": tensor for key, tensor in tensors.items()} | ids

    def older_vae(tensors):
        names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))

        def older(key):
            for new, old in names if "attentions" in key else ():
                key = key.replace(new, old)
            return key

        return {older(key): tensor for key, tensor in tensors.items()}

    change(copied_sd / TEXT, older_text)
    change(copied_sd / VAE, older_vae)
    assert "encoder.mid_block.attentions.0.query.weight" in load_file(copied_sd / VAE)
    (copied_sd / "tokenizer/tokenizer.json").unlink()
    change_json(copied_sd / "scheduler/scheduler_config.json", _class_name="PNDMScheduler", prediction_type=None)
    prior, image = load_sd(copied_sd), torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    x, t = torch.zeros(1, 16, 8, 8), torch.tensor([0.5])
    assert torch.equal(prior.embed(["red zebra"]).tensors["prompt"], sd.embed(["red zebra"]).tensors["prompt"])
    assert torch.equal(prior.predict(x, t, prior.embed([""])), sd.predict(x, t, sd.embed([""])))
    assert prior.kind == "eps" and torch.equal(prior.encode(image), sd.encode(image))

    for file, key, today in (
        (TEXT, "text_model.final_layer_norm.bias", "final_layer_norm.bias"),
        (VAE, "encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
    ):
        change(copied_sd / file, without(key))
        with pytest.raises(PriorError, match=f"1 keys missing in the weights, such as {today}"):
            damaged = load_sd(copied_sd)
            damaged.embed(["red"])
            damaged.load()
        shutil.copyfile(Path(sd.text.folder) / file, copied_sd / file)


def test_parts_in_several_files_load_the_same_without_bars(copied_sd, sd, capfd):
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    for name, cls, size in (("unet", UNet2DConditionModel, "100KB"), ("text_encoder", CLIPTextModel, "10KB")):
        module = cls.from_pretrained(copied_sd / name)
        shutil.rmtree(copied_sd / name)
        module.save_pretrained(copied_sd / name, max_shard_size=size)
        assert len(list((copied_sd / name).glob("*-of-*.safetensors"))) > 1
    capfd.readouterr()
    prior, x, t = load_sd(copied_sd), torch.zeros(1, 16, 8, 8), torch.tensor([0.5])
    assert torch.allclose(prior.predict(x, t, prior.embed(["red"])), sd.predict(x, t, sd.embed(["red"])), atol=1e-5)
    assert capfd.readouterr().err == ""


def test_a_vae_config_without_a_scale_has_diffusers_own(copied_sd, change_json):
    change_json(copied_sd / "vae/config.json", scaling_factor=None)
    prior = load_sd(copied_sd)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(prior.encode(image), 0.18215 * prior.parts.vae.encode(2 * image - 1).latent_dist.mode())
