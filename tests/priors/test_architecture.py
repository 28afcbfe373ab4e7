"""Fresh parts of the embedded prior: tokenizer, folder, seeds. GPT-2's byte table and the pipeline are the oracles.

Mutations tried, each seen to fail: a merge added for every left-to-right pair (breaks words that share letters);
vocabulary without the `</w>` letters; weights drawn without a seed; config dtype left at float16; weights in one file
of any size.
"""

import json

import pytest
import torch

from threestudio_rf.priors.folder import saving
from threestudio_rf.priors.folder.architecture import (
    byte_alphabet,
    byte_pairs,
    copy_weights,
    make_text_encoder,
    make_tokenizer,
    make_transformer,
    make_vae,
    save_sd3,
    zero_modulation,
)

WORDS = ["arrow", "barrel", "red", "bred", "rowed", "elephant", "ant", "el", "a", "café", "view", "overhead"]


def test_the_byte_alphabet_is_gpt2s():
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_alphabet() == bytes_to_unicode()


def test_each_known_word_is_one_token_in_any_order_and_other_text_falls_back_to_bytes():
    for words in (WORDS, WORDS[::-1], sorted(WORDS)):
        tokenizer = make_tokenizer(words)
        assert [len(tokenizer(word).input_ids) for word in words] == [3] * len(words)
        ids = tokenizer("A red barrel, overhead view").input_ids
        assert len(ids) == 8
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == [
            "a",
            "red",
            "barrel",
            ",",
            "overhead",
            "view",
        ]
        assert len(tokenizer("xyz!").input_ids) == 2 + 4


def test_words_that_clip_splits_are_errors():
    for word in ("close-up", "t5", ""):
        with pytest.raises(ValueError, match="words: got"):
            make_tokenizer([word])


def test_a_vocabulary_has_no_gaps():
    vocabulary, merges = byte_pairs(WORDS)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(merges) == len(set(merges))


def test_weights_depend_on_the_seed_only_and_the_global_state_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (make_vae((8, 8), groups=4, seed=seed).encoder.conv_in.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_saved_tokenizer_reads_the_same_from_each_of_its_forms(sd3_folder):
    from transformers import CLIPTokenizer

    folder = sd3_folder / "tokenizer"
    text = "a red mushroom, zebra 42 view"
    whole = CLIPTokenizer.from_pretrained(folder)
    older = CLIPTokenizer(
        vocab=json.loads((folder / "vocab.json").read_text()),
        merges=[tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]],
    )
    assert whole(text).input_ids == older(text).input_ids
    assert whole.model_max_length == 16


def fresh_parts():
    tokenizer = make_tokenizer(["red"])
    encoders = [make_text_encoder(tokenizer, 8, 2, 2, 8, seed=seed) for seed in (1, 2)]
    transformer = make_transformer(encoders, layers=1, heads=1, head_dim=16)
    vae = make_vae((8, 8), groups=4, scaling=0.7, shift=-0.2)
    return {"vae": vae, "transformer": transformer, "text_encoders": encoders, "tokenizers": [tokenizer, tokenizer]}


def test_float16_halves_the_folder_leaves_the_modules_and_loads_as_float32(tmp_path):
    from diffusers import StableDiffusion3Pipeline

    parts, sizes = fresh_parts(), []
    transformer = parts["transformer"]
    for dtype in (torch.float32, torch.float16):
        folder = save_sd3(tmp_path / str(dtype), dtype=dtype, **parts)
        sizes.append((folder / "transformer/diffusion_pytorch_model.safetensors").stat().st_size)
    assert sizes[1] < 0.55 * sizes[0] and transformer.dtype == torch.float32
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    assert {pipe.transformer.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert (pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor) == (0.7, -0.2)
    assert pipe.scheduler.config.shift == 3.0 and pipe.tokenizer_max_length == 16


def test_large_parts_are_saved_in_files_of_a_stated_size_and_load_as_one(tmp_path, monkeypatch):
    from diffusers import SD3Transformer2DModel

    parts = fresh_parts()
    monkeypatch.setattr(saving, "LARGEST", "20KB")
    folder = save_sd3(tmp_path, **parts) / "transformer"
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 2 and max(file.stat().st_size for file in files) < 24_000  # tensors and a header
    again = make_transformer(parts["text_encoders"], layers=1, heads=1, head_dim=16, seed=1)
    copy_weights(again, folder)
    for loaded in (SD3Transformer2DModel.from_pretrained(folder), again):
        for name, value in parts["transformer"].state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_zero_modulation_makes_the_output_zero_at_the_start():
    tokenizer = make_tokenizer(["red"])
    encoders = [make_text_encoder(tokenizer, 8, 2, 2, 8, seed=seed) for seed in (1, 2)]
    transformer = make_transformer(encoders, layers=2, heads=1, head_dim=16)
    inputs = {
        "hidden_states": torch.randn(2, 16, 8, 8),
        "timestep": torch.tensor([10.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 16, 16),
        "pooled_projections": torch.randn(2, 16),
        "return_dict": False,
    }
    assert transformer(**inputs)[0].std() > 0.01
    zero_modulation(transformer)
    assert transformer(**inputs)[0].eq(0).all()
