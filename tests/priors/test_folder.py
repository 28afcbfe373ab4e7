"""Broken and wrong folders are refused with a text for the user.

Mutations tried, each seen to fail: the comparison of keys dropped; the finite sum dropped; headers not opened before
loading; .bin accepted; the class name of model_index.json trusted instead of the parts.
"""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.sd3 import load_sd3

NETWORK = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def change(file, edit):
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def use(folder):
    prior = load_sd3(folder)
    prior.embed(["red"])
    prior.load()


def refused(folder):
    with pytest.raises(PriorError) as caught:
        use(folder)
    return str(caught.value)


@pytest.mark.parametrize(("file", "key"), [(NETWORK, "proj_out.weight"), (TEXT, "text_projection.weight")])
def test_a_missing_key_is_named(copied, file, key):
    change(copied / file, lambda tensors: tensors.pop(key))
    text = refused(copied)
    assert "1 keys missing" in text and key in text and str((copied / file).parent) in text


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("file", "key"),
    [
        (NETWORK, "proj_out.bias"),
        (TEXT, "text_projection.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.bias"),
    ],
)
def test_weights_that_are_not_finite_are_named(copied, file, key, value):
    change(copied / file, lambda tensors: tensors[key].view(-1)[:1].fill_(value))
    text = refused(copied)
    assert "not finite" in text and key in text


@pytest.mark.parametrize(("file", "key"), [(NETWORK, "proj_out.weight"), (TEXT, "text_projection.weight")])
def test_a_wrong_shape_is_named_with_both_shapes(copied, file, key):
    change(copied / file, lambda tensors: tensors.update({key: torch.zeros(3, 5)}))
    text = refused(copied)
    assert f"{key}: got (3, 5), expected (" in text and len(text) < 400


@pytest.mark.parametrize("file", [NETWORK, TEXT])
def test_truncated_empty_and_pointer_weights_are_told_apart_before_anything_loads(copied, file):
    whole = (copied / file).read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], f"({len(whole) // 2} bytes) is empty, truncated or damaged"),
        (b"", "(0 bytes) is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
    ):
        (copied / file).write_bytes(content)
        with pytest.raises(PriorError) as caught:
            load_sd3(copied)
        assert words in str(caught.value) and file in str(caught.value)


def test_pickled_weights_are_never_read(copied, tmp_path):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (copied / NETWORK).unlink()
    (copied / "transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Canary()))
    assert "pickled weights (diffusion_pytorch_model.bin)" in refused(copied)
    assert not (tmp_path / "canary").exists()


def test_custom_code_in_a_folder_does_not_run(copied, tmp_path):
    canary = tmp_path / "canary"
    (copied / "pipeline.py").write_text(f"open({str(canary)!r}, 'w')\n")
    index = json.loads((copied / "model_index.json").read_text())
    index |= {"_class_name": ["pipeline", "Mine"], "transformer": ["pipeline", "SD3Transformer2DModel"]}
    (copied / "model_index.json").write_text(json.dumps(index))
    use(copied)
    assert not canary.exists()


def test_a_folder_of_another_kind_names_the_prior_to_choose(copied):
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (copied / "model_index.json").write_text(json.dumps(index))
    assert "StableDiffusionPipeline" in refused(copied) and "use prior=sd" in refused(copied)
    (copied / "model_index.json").write_text(json.dumps({"_class_name": "Foreign"}))
    assert "no adapter" in refused(copied)
    (copied / "model_index.json").write_text("{")
    assert "model_index.json cannot be read" in refused(copied)
    (copied / "model_index.json").unlink()
    assert "holds no model_index.json" in refused(copied)


def test_a_part_that_is_missing_is_named(copied):
    shutil.rmtree(copied / "vae")
    assert "vae holds no weights" in refused(copied)


def test_a_variant_is_used_where_a_part_has_it(copied):
    for folder in (copied / "transformer", copied / "vae"):
        file = folder / "diffusion_pytorch_model.safetensors"
        file.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    assert "transformer holds no weights" in refused(copied)
    load_sd3(copied, variant="fp16").load()
