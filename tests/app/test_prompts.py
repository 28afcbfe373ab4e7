"""From settings to what a camera's network call hears: overrides per view, Perp-Neg's settings, the window of tokens.

Seen to fail: the curves of front and side exchanged; `loss.perp_neg` not passed on; the overrides of front and side
exchanged; the prompts not cut for a prior whose window is short.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from threestudio_rf.app.build.method import lift_settings
from threestudio_rf.app.build.scene import build_prior
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.priors.views import VIEWS, Curves
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.tiny.world.views import COLOURS
from threestudio_rf.trainer.lift import seen_from

OVERRIDES = ["prompt='a red ball'", "prior.prompt_front='a blue ball'", "prior.prompt_overhead='a pink disc'"]


def config_of(*line: str) -> Config:
    return typed(compose(["prior=gaussian", "experiment=tiny_rfds", *line]))


def heard(config: Config, azimuth: list[float], elevation: list[float]) -> dict[str, list[dict[str, float]]]:
    """The colours that each camera's prompt selects in every role, with their shares."""
    prior, turns = build_prior(config.prior, torch.device("cpu")), torch.tensor(azimuth)
    camera = Camera(turns, torch.tensor(elevation), 2 + 0 * turns, 45 + 0 * turns, 8, 8)
    views, negative = embed_views(config, prior)
    seen, _ = seen_from(views, negative, camera=camera, settings=lift_settings(config))
    rows = {role: c.expand(len(camera)).tensors["modes"].tolist() for role, c in seen.items()}
    return {
        role: [{name: share for name, share in zip(COLOURS, row, strict=True) if share} for row in table]
        for role, table in rows.items()
    }


def test_overrides_reach_the_views_they_are_for() -> None:
    roles = heard(config_of(*OVERRIDES, "negative_prompt=green"), [0.0, 90.0, 180.0, 0.0], [0.0, 0.0, 0.0, 70.0])
    assert roles["cond"] == [{"blue": 1.0}, {"red": 1.0}, {"red": 1.0}, {"pink": 1.0}]
    assert roles["uncond"] == [{"green": 1.0}] * 4 and set(roles) == {"cond", "uncond"}


def test_perp_neg_mixes_and_pushes_away_the_overrides_too() -> None:
    config = config_of(*OVERRIDES, "loss.perp_neg=true", "prior.prompt_side='a cyan ball'")
    roles = heard(config, [0.0, -67.5, 135.0, 0.0], [0.0, 0.0, 0.0, 70.0])
    assert roles.pop("cond") == [{"blue": 1.0}, {"blue": 0.25, "cyan": 0.75}, {"red": 0.5, "cyan": 0.5}, {"pink": 1.0}]
    assert all(len(row) == len(COLOURS) for row in roles.pop("uncond")), "no negative prompt: every colour"
    front, side = roles.values()
    assert front == [{"blue": 1.0}] * 4 and side == [{"cyan": 1.0}] * 4


def test_the_curves_are_threestudios_unless_given() -> None:
    assert lift_settings(config_of("prompt=x")).perp_neg is None
    assert lift_settings(config_of("prompt=x", "loss.perp_neg=true")).perp_neg == Curves()
    given = ["loss.perp_neg_f_fs=[1,2,3]", "loss.perp_neg_f_sf=[4,5,6]", "loss.perp_neg_f_fsb=[7,8,9]"]
    made = lift_settings(config_of("prompt=x", "loss.perp_neg=true", *given, "loss.perp_neg_f_sb=[0,0,1]"))
    assert made.perp_neg == Curves(f_fs=(1, 2, 3), f_sf=(4, 5, 6), f_fsb=(7, 8, 9), f_sb=(0, 0, 1))


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion whose text encoder reads 12 tokens."""
    from threestudio_rf.priors.folder.architecture import make_tokenizer, make_vae
    from threestudio_rf.priors.folder.architecture_sd import make_sd_text_encoder, make_unet, save_sd

    tokenizer = make_tokenizer(["red", "ball", "view", *VIEWS], 12)
    return save_sd(
        tmp_path_factory.mktemp("sd"),
        vae=make_vae((8, 8, 16, 16), groups=4, scaling=1.5, seed=3),
        unet=make_unet(16, channels=(16, 16), latent_channels=16),
        text_encoder=make_sd_text_encoder(tokenizer, width=16, layers=1, heads=2),
        tokenizer=tokenizer,
    )


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_stable_diffusion_keeps_the_view_words_of_a_prompt_beyond_its_window(sd_folder: Path, kind: str) -> None:
    from threestudio_rf.priors.sd import load_sd

    prior = load_sd(sd_folder, kind=kind)
    with pytest.warns(UserWarning, match="left out: 'red red red'") as caught:
        views, _ = embed_views(config_of("prompt='" + "red " * 9 + "red'"), prior)
    assert len([w for w in caught if "left out" in str(w.message)]) == 1
    kept = prior.embed(["red " * 6 + f"red, {view} view" for view in VIEWS])
    assert torch.equal(views.tensors["prompt"], kept.tensors["prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        short, _ = embed_views(config_of("prompt='red ball'", "loss.perp_neg=true"), prior)
    assert len({tuple(row.flatten().tolist()) for row in short.tensors["prompt"]}) == 4
