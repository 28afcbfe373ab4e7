"""A small SD3 with random weights, built once per run, in a folder that StableDiffusion3Pipeline loads."""

import shutil

import pytest

WORDS = ["red", "blue", "green", "mushroom", "ball", "arrow", "barrel", "view", "front", "side", "back", "overhead"]


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory):
    from threestudio_rf.priors.architecture import (
        make_text_encoder,
        make_tokenizer,
        make_transformer,
        make_vae,
        save_sd3,
    )

    tokenizer = make_tokenizer(WORDS)
    encoders = [
        make_text_encoder(tokenizer, 16, 2, 2, 16, seed=1),
        make_text_encoder(tokenizer, 24, 2, 2, 8, seed=2),
    ]
    return save_sd3(
        tmp_path_factory.mktemp("priors") / "random-sd3",
        vae=make_vae((8, 8, 16, 16), groups=4, scaling=1.5, shift=0.1, seed=3),
        transformer=make_transformer(encoders, layers=2, heads=2, head_dim=16, seed=4),
        text_encoders=encoders,
        tokenizers=[tokenizer, tokenizer],
    )


@pytest.fixture
def copied(sd3_folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(sd3_folder, tmp_path / "prior")


@pytest.fixture(scope="session")
def sd3(sd3_folder):
    from threestudio_rf.priors.sd3 import load_sd3

    return load_sd3(sd3_folder)


@pytest.fixture(scope="session")
def pipe(sd3_folder):
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe
