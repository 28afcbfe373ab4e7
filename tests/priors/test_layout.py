"""What a folder says of itself is read by types before anything loads; what is no prior says what it is.

Seen to fail: each check of a type left out; the tokenizer's own length taken; a class of the index believed instead of
the part's; a snapshot that is not main's; LoRA weights called a single-file checkpoint.
"""

import json
import os
import shutil
from typing import Literal, Optional

import pytest
import torch
from safetensors.torch import load_file, save_file

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import fits, read_index
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3


def used(load, folder):
    prior = load(folder)
    prior.embed(["red"])
    prior.load()
    return prior


def edit(file, key, value):
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))


WRONG = [
    ("unet", "sample_size", [8, 16], "a whole number n of at least 1"),
    ("unet", "sample_size", "8", "or [n, n]"),
    ("unet", "sample_size", 10**9, "at most 16384, or [n, n]"),
    ("unet", "in_channels", 16.5, "a whole number"),
    ("unet", "block_out_channels", 16, "a list of whole numbers"),
    ("unet", "layers_per_block", -1, "no negative number"),
    ("unet", "layers_per_block", 10**9, "the number of weights in the files"),
    ("unet", "norm_num_groups", "x", "a whole number"),
    ("unet", "act_fn", 3, "a text"),
    ("vae", "scaling_factor", None, "a number"),
    ("vae", "scaling_factor", "1", "a number"),
    ("vae", "latent_channels", True, "a whole number"),
    ("vae", "block_out_channels", [8, "8"], "a list of whole numbers"),
    ("text_encoder", "num_hidden_layers", "x", "a whole number"),
    ("text_encoder", "layer_norm_eps", None, "a number"),
    ("text_encoder", "attention_dropout", None, "a number"),
    ("text_encoder", "num_attention_heads", -1, "no negative number"),
    ("text_encoder", "max_position_embeddings", [16], "a whole number"),
    ("scheduler", "prediction_type", ["epsilon"], "a text"),
    ("scheduler", "beta_schedule", ["linear"], "a text"),
    ("scheduler", "num_train_timesteps", "1000", "a whole number"),
    ("scheduler", "beta_end", None, "a number"),
    ("scheduler", "beta_start", -1, "a number above 0"),
    ("scheduler", "trained_betas", [0.1, "x"], "a list of numbers or null"),
    ("scheduler", "trained_betas", [0.1] * 10, "as many numbers as num_train_timesteps says"),
]


@pytest.mark.parametrize(("part", "key", "value", "expected"), WRONG)
def test_an_entry_of_another_type_is_refused_with_file_key_and_value(copied_sd, part, key, value, expected):
    file = copied_sd / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    edit(file, key, value)
    with pytest.raises(PriorError) as caught:
        used(load_sd, copied_sd)
    text = str(caught.value)
    assert str(file) in text and f"{key} is {json.dumps(value)}, expected" in text and expected in text


@pytest.mark.parametrize(("encoding", "words"), [("utf-8-sig", "byte order mark"), ("utf-16", "no text in UTF-8")])
def test_json_in_another_encoding_is_refused_with_its_file(copied_sd, encoding, words):
    file = copied_sd / "unet/config.json"
    file.write_text(file.read_text(), encoding=encoding)
    with pytest.raises(PriorError, match=f"unet/config.json .*{words}.*; save it"):
        load_sd(copied_sd)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("scheduler", "shift", "3"), ("transformer", "patch_size", 0), ("transformer", "num_layers", "x")],
)
def test_those_of_sd3_too(copied, part, key, value):
    edit(copied / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), key, value)
    with pytest.raises(PriorError, match=f"{key} is {json.dumps(value)}, expected"):
        used(load_sd3, copied)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/tokenizer.json"])
def test_json_that_is_nested_too_deep_or_no_table_is_refused(copied_sd, file):
    for text in ("[" * 100_000, '{"a":' * 100_000, "[1]", "7"):
        (copied_sd / file).write_text(text)
        with pytest.raises(PriorError, match=file.split("/")[0]) as caught:
            used(load_sd, copied_sd)
        assert "Error" not in str(caught.value) and "\n" not in str(caught.value)


def test_square_sizes_may_be_written_as_two_numbers(copied_sd, copied, sd, sd3):
    for folder, part, load, plain in ((copied_sd, "unet", load_sd, sd), (copied, "transformer", load_sd3, sd3)):
        file = folder / part / "config.json"
        edit(file, "sample_size", [json.loads(file.read_text())["sample_size"]] * 2)
        prior = load(folder)
        x, t = torch.linspace(-1, 1, 16 * 64).reshape(1, 16, 8, 8), torch.tensor([0.3])
        condition = prior.embed(["red"])
        assert prior.latent_shape == plain.latent_shape
        assert torch.equal(prior.predict(x, t, condition), plain.predict(x, t, condition))


@pytest.mark.parametrize("stated", [None, 10**30, "77", -1])
def test_a_text_is_as_long_as_its_encoder_has_positions(copied_sd, copied, sd, sd3, stated, change_json):
    for folder, load, plain in ((copied_sd, load_sd, sd), (copied, load_sd3, sd3)):
        for file in folder.glob("tokenizer*/tokenizer_config.json"):
            change_json(file, model_max_length=stated)
        text = "red " * 40
        with pytest.warns(UserWarning, match="16 tokens"):
            found = load(folder).embed([text]).tensors["prompt"]
        with pytest.warns(UserWarning, match="16 tokens"):
            assert torch.equal(found, plain.text.embed([text])[0]["prompt"][None])
        assert not load(folder).fits(text) and load(folder).fits("red ball")


def test_a_tiny_autoencoder_inside_a_folder_is_used_as_beside_it(copied_sd, copied, tiny_vae):
    from threestudio_rf.priors.folder.parts import PartOptions

    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for folder, load in ((copied_sd, load_sd), (copied, load_sd3)):
        beside = load(folder, options=PartOptions(vae=str(tiny_vae))).encode(image)
        shutil.rmtree(folder / "vae")
        shutil.copytree(tiny_vae, folder / "vae")
        assert torch.equal(load(folder).encode(image), beside)
        assert torch.equal(load(folder, options=PartOptions(vae=str(folder))).encode(image), beside)


def test_a_part_of_another_class_is_refused_before_anything_loads(copied_sd):
    for part, key, value, words in (
        ("vae", "_class_name", "AsymmetricAutoencoderKL", "expected AutoencoderKL or AutoencoderTiny"),
        ("unet", "_class_name", "UNet3DConditionModel", "expected UNet2DConditionModel"),
        ("text_encoder", "model_type", "bert", "expected CLIPTextModel"),
    ):
        file = copied_sd / part / "config.json"
        before = file.read_text()
        edit(file, key, value)
        with pytest.raises(PriorError, match=f"{value}, {words}"):
            load_sd(copied_sd)
        file.write_text(before)


def test_weights_that_are_whole_numbers_and_broken_merges_are_refused(copied_sd):
    file = copied_sd / "unet/diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    for kind in (torch.int64, torch.uint8, torch.bool):
        tensors = load_file(file)
        save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"].to(kind)}, file, {"format": "pt"})
        with pytest.raises(PriorError, match=r"1 weights that are whole numbers, such as conv_in\.bias"):
            used(load_sd, copied_sd)
        file.write_bytes(whole)
    (copied_sd / "tokenizer/tokenizer.json").unlink()
    (copied_sd / "tokenizer/merges.txt").write_text("#version: 0.2\nno such pair of words\nx\n")
    with pytest.raises(PriorError, match="the tokenizer cannot be loaded"):
        used(load_sd, copied_sd)


def test_words_that_the_encoder_does_not_know_are_refused(copied_sd):
    edit(copied_sd / "text_encoder/config.json", "vocab_size", 20)
    with pytest.raises(PriorError, match="its encoder text_encoder knows 20"):
        load_sd(copied_sd).embed(["red"])


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "unet/more.safetensors", "scheduler/scheduler_config.json"])
def test_a_pipe_in_a_folder_is_refused_and_nobody_waits_for_it(copied_sd, name):
    (copied_sd / name).unlink(missing_ok=True)
    os.mkfifo(copied_sd / name)
    with pytest.raises(PriorError, match=f"{name} is a pipe, socket or device"):
        read_index(copied_sd, "sd")
    (copied_sd / name).unlink()
    (copied_sd / name).symlink_to(copied_sd / "nowhere")
    assert read_index(copied_sd, "sd")["_class_name"] == "StableDiffusionPipeline"


def test_a_folder_of_the_hubs_cache_means_its_snapshot(tmp_path, sd_folder):
    cached = tmp_path / "models--me--tiny"
    for commit in ("aaa", "bbb"):
        shutil.copytree(sd_folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("aaa")
    with pytest.warns(UserWarning, match=f"its snapshot {cached}/snapshots/aaa is used"):
        assert load_sd(cached).parts.places.folder == cached / "snapshots/aaa"
    (cached / "refs/main").unlink()
    with pytest.warns(UserWarning, match="a folder of the hub's cache"):
        load_sd(cached)
    with pytest.raises(PriorError, match=rf"a cache of the hub; give one of its folders, {cached}"):
        load_sd(tmp_path)


def test_folders_that_are_no_prior_say_what_they_are(tmp_path, sd_folder):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/pytorch_lora_weights.safetensors").write_bytes(b"x")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/model.ckpt").write_bytes(b"x")
    for folder, words in (
        ("lora", "pytorch_lora_weights.safetensors are LoRA weights, which change a prior"),
        ("one", r"it holds: model.ckpt\); single-file checkpoints must be converted"),
    ):
        with pytest.raises(PriorError, match=words):
            load_sd(tmp_path / folder)
    with pytest.raises(PriorError, match=r"it holds: lora, one\)"):
        load_sd(tmp_path)
    with pytest.raises(PriorError, match="it holds a UNet2DConditionModel, one part of one"):
        load_sd(sd_folder / "unet")
    with pytest.raises(PriorError, match=rf"the folder in it, {sd_folder}, is one"):
        load_sd(sd_folder.parent)


def test_a_value_fits_its_declared_type():
    assert fits([8, 8], int | tuple[int, int]) and fits(8, int | tuple[int, int]) and fits(None, Optional[int])  # noqa: UP045
    assert not fits([8, "8"], tuple[int, ...]) and not fits(8.5, int) and not fits(True, int) and not fits(None, int)
    assert fits(1, float) and fits(True, float) and not fits(float("nan"), float) and not fits("1", float)
    assert fits("a", Literal["a", "b"]) and not fits("c", Literal["a", "b"]) and fits({}, torch.dtype)
