"""A small SD3 and a small SD with random weights, built once per run, in folders that diffusers' pipelines load."""

import json
import shutil

import pytest

WORDS = ["red", "blue", "green", "mushroom", "ball", "arrow", "barrel", "view", "front", "side", "back", "overhead"]


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory):
    from threestudio_rf.priors.folder.architecture import (
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


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """SD in eps. Its VAE has a shift_factor, which StableDiffusionPipeline does not know."""
    from threestudio_rf.priors.folder.architecture import make_tokenizer, make_vae
    from threestudio_rf.priors.folder.architecture_sd import make_sd_text_encoder, make_unet, save_sd

    tokenizer = make_tokenizer(WORDS)
    return save_sd(
        tmp_path_factory.mktemp("priors") / "random-sd",
        vae=make_vae((8, 8, 16, 16), groups=4, scaling=1.5, shift=0.1, seed=3),
        unet=make_unet(16, channels=(16, 24), heads=2, seed=4),
        text_encoder=make_sd_text_encoder(tokenizer, width=16, heads=2, seed=5),
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="session")
def change_json():
    """Sets entries of a JSON file; None removes them."""

    def change(file, **values):
        table = json.loads(file.read_text()) | values
        file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))

    return change


@pytest.fixture(scope="session")
def sd_v_folder(sd_folder, tmp_path_factory, change_json):
    """The same network, said to predict v."""
    folder = shutil.copytree(sd_folder, tmp_path_factory.mktemp("priors") / "random-sd-v")
    change_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    return folder


@pytest.fixture
def copied_sd(sd_folder, tmp_path):
    """A copy of SD's folder that a test may damage."""
    return shutil.copytree(sd_folder, tmp_path / "prior-sd")


@pytest.fixture(scope="session")
def sd(sd_folder):
    from threestudio_rf.priors.sd import load_sd

    return load_sd(sd_folder)


@pytest.fixture(scope="session")
def sd_v(sd_v_folder):
    from threestudio_rf.priors.sd import load_sd

    return load_sd(sd_v_folder)


@pytest.fixture(scope="session")
def instaflow(sd_folder):
    from threestudio_rf.priors.sd import load_sd

    return load_sd(sd_folder, kind="flow", name="instaflow")


@pytest.fixture(scope="session")
def sd_pipe(sd_folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory):
    """An AutoencoderTiny (TAESD) x8 for the 16 latent channels of both."""
    import torch
    from diffusers import AutoencoderTiny

    folder = tmp_path_factory.mktemp("priors") / "random-taesd"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        sizes = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
        AutoencoderTiny(latent_channels=16, **sizes).save_pretrained(folder)
    return folder
