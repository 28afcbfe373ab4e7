"""task=edit: what is written, at which size, what is kept, what is refused.

Seen to fail: the edit placed at the corner of a large picture, its surroundings replaced; the mask not given on, or
inverted; one noise for prompt and prompt; a broken file that ends the folder, a
folder that ends with 0; the checks of prompts, settings, path and mask left out; a setting given to a method that lacks
it; the published settings ignored by paper=true.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.picture import fitted, spread
from threestudio_rf.app.build.tuned import COMMON, NAMES, PAPER, TUNED, method_of
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings import edit as settings_edit
from threestudio_rf.app.settings import groups
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.core.level import rectified_flow
from threestudio_rf.core.solve import QUIET, STEPS
from threestudio_rf.edit.method import METHODS, times_of
from threestudio_rf.priors.tiny import EMBEDDED
from threestudio_rf.tiny.world.views import COLOURS

RED, BLUE, GREEN = (tuple(round(255 * x) for x in COLOURS[name]) for name in ("red", "blue", "green"))
LINE = ["task=edit", "prior=gaussian", "source=a red ball", "prompt=a blue ball"]


def flat(path: Path, size: tuple[int, int] = (24, 16), colour: tuple[int, ...] = RED) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def colour_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(float).mean((0, 1))


def test_a_picture_becomes_what_the_prompt_says_at_its_own_size(launcher: Any, tmp_path: Path) -> None:
    flat(tmp_path / "a, b.png", (16, 16))
    code, folder, out, _ = launcher(*LINE, f"image={tmp_path}/a, b.png", f"exp_root_dir={tmp_path}", "video=true")
    assert code == 0 and out.strip().splitlines()[-1] == f"run: {folder}" and folder.name.startswith("a_blue_ball@")
    result = Image.open(folder / "save/a, b.png")
    assert result.size == (16, 16) and np.abs(colour_of(folder / "save/a, b.png") - BLUE).max() < 30
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["bound_psnr"] > 40 and figures["psnr"] < 15 and figures["network_calls"] > 0
    assert figures["ssim"] is not None and figures["seconds"] > 0 and "judged_success" not in figures
    assert (folder / "save/strip.png").is_file() and (folder / "save/a, b-trajectory.mp4").is_file()
    assert {"cmd.txt", "log.txt", "run.json", "configs"} <= {path.name for path in folder.iterdir()}


def test_what_the_prior_did_not_see_stays_as_it_was(launcher: Any, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 16), GREEN)
    ImageDraw.Draw(picture).rectangle((12, 0, 27, 15), fill=RED)
    picture.save(tmp_path / "wide.png")
    for keep in ("0", "0.2"):
        code, folder, _, _ = launcher(*LINE, f"image={tmp_path}/wide.png", f"keep={keep}", f"exp_root_dir={tmp_path}")
        stored = np.asarray(Image.open(folder / "save/wide.png")).astype(float)
        assert code == 0 and stored.shape == (16, 40, 3)
        assert (stored[:, :12] == GREEN).all() and (stored[:, 28:] == GREEN).all()
        assert np.abs(stored[:, 14:26] - BLUE).mean() < 30


def test_several_prompts_give_a_grid_and_none_depends_on_the_others(launcher: Any, tmp_path: Path) -> None:
    flat(tmp_path / "p.png", (16, 16))
    line = ["task=edit", "prior=gaussian", "source=", f"image={tmp_path}/p.png", f"exp_root_dir={tmp_path}"]
    code, both, _, _ = launcher(*line, 'prompts=["a blue, round ball","a green ball"]')
    assert code == 0 and (both / "save/grid.png").is_file()
    _, alone, _, _ = launcher(*line, "prompt=a green ball")
    one, two = (np.asarray(Image.open(path)) for path in (both / "save/p-1.png", alone / "save/p.png"))
    assert np.array_equal(one, two) and np.abs(colour_of(both / "save/p-0.png") - BLUE).max() < 40
    figures = json.loads((both / "metrics.json").read_text())
    assert (
        list(figures["prompts"]) == ["a blue, round ball", "a green ball"]
        and "psnr" in figures["prompts"]["a green ball"]
    )


def test_a_folder_gives_a_table_and_broken_files_come_last(launcher: Any, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    flat(folder / "b.png")
    flat(folder / "b.jpg")
    flat(folder / "c.png")
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("nothing")
    code, run, out, err = launcher(*LINE, f"image={folder}", f"exp_root_dir={tmp_path}")
    assert code == 1 and "3 of 4 pictures are done" in out and "a.png: not a picture" in err
    assert err.rstrip().splitlines()[-1].startswith("failed: a.png") or "failed: a.png" in err
    table = (run / "save/table.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["b.jpg", "b.png", "c.png"]
    assert {path.name for path in (run / "save").glob("*.png")} == {"b_jpg.png", "b_png.png", "c.png", "grid.png"}
    figures = json.loads((run / "metrics.json").read_text())
    assert list(figures["failed"]) == ["a.png"] and set(figures["pictures"]) == {"b.jpg", "b.png", "c.png"}
    (tmp_path / "empty").mkdir()
    code, _, _, err = launcher(*LINE, f"image={tmp_path}/empty", f"exp_root_dir={tmp_path}")
    assert code == 2 and "has no pictures" in err


def test_the_black_part_of_a_mask_is_the_pictures_own(launcher: Any, tmp_path: Path) -> None:
    flat(tmp_path / "p.png", (32, 32))
    mask = Image.new("L", (32, 32), 0)
    ImageDraw.Draw(mask).rectangle((16, 0, 31, 31), fill=255)
    mask.save(tmp_path / "mask.png")
    line = [*LINE, f"image={tmp_path}/p.png", f"mask={tmp_path}/mask.png", f"exp_root_dir={tmp_path}"]
    for method in ("flowedit", "fireflow"):
        code, folder, _, _ = launcher(*line, f"method={method}")
        stored = np.asarray(Image.open(folder / "save/p.png")).astype(float)
        assert code == 0 and (stored[:, :16] == RED).all() and np.abs(stored[:, 20:] - RED).mean() > 10
        assert json.loads((folder / "metrics.json").read_text())["psnr_outside"] is None, "equal there"
    _, folder, _, _ = launcher(*line, "method=flowchef", "k=1", "stop=1", "keep=0")
    stored = np.asarray(Image.open(folder / "save/p.png")).astype(float)
    assert np.abs(stored[:, 20:] - RED).mean() > 50, "the white part is not steered to the picture"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("prompt=x", "task=edit needs a picture"),
        ("image=p.png", "the prompt is empty"),
        ("image=p.png prompt=y source=y", "nothing is asked for"),
        ('image=p.png source=b prompts=["a","b"]', "nothing is asked for"),
        ('image=p.png prompt=x prompts=["a"]', "only one of them"),
        ("image=p.png prompt=x method=flowedit gamma=0.5", "flowedit has no such setting; it has .*cfg_source"),
        ("image=p.png prompt=x method=fireflow draws=2", "fireflow has no such setting"),
        ("image=p.png prompt=x method=flowedits", "did you mean flowedit"),
        ("image=p.png prompt=x method=irfds_sd3 prior=tiny_sd", r"irfds_sd3 does not fit prior tiny_sd: .*0\.936"),
        ("image=p.png prompt=x method=sdedit t_start=0.99 prior=tiny_sd_v", "does not fit prior tiny_sd_v"),
        ("image=p.png prompt=x shift=3 prior=tiny_sd", "those of a table"),
        ("image=p.png prompt=x method=euler solver=heun gamma=0.5", "Heun's rule"),
        ("image=p.png prompt=x method=irfds t_min=0.9 t_max=0.5", "t_min"),
        ("image=p.png prompt=x n_min=8", "n_min 8, law falling, 8 steps"),
        ("image=p.png prompt=x method=flowalign n_min=2 law=uniform", "expected law falling"),
        ("image=p.png prompt=x of=4", "got of 4, 8 steps"),
        ("image=p.png prompt=x of=20 t_start=0.5", "expected no t_start"),
        ("image=p.png prompt=x method=fireflow sde=true", "expected euler"),
        ("image=p.png prompt=x method=direct solver=midpoint", "direct has no such setting; it has cfg"),
        ("image=p.png prompt=x keep=2", r"edit\.keep"),
        ("image=p.png prompt=x steps=-1", r"edit\.steps"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_loads(items: str, message: str) -> None:
    config = typed(compose(translate(["task=edit", *items.split(" ")]).overrides))
    with pytest.raises(UserError, match=message):
        check(config)


def test_faults_of_the_files_end_with_2_before_the_prior_loads(launcher: Any, tmp_path: Path) -> None:
    flat(tmp_path / "p.png", (16, 12))
    Image.new("L", (8, 12), 255).save(tmp_path / "small.png")
    Image.new("L", (16, 12), 0).save(tmp_path / "black.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    line, root = ["task=edit", "prior=gaussian", "prompt=a blue ball"], f"exp_root_dir={tmp_path}"
    for items, message in (
        ([f"image={tmp_path}/none.png"], "no such file"),
        ([f"image={tmp_path}/cut.png"], "cut.png"),
        (
            [f"image={tmp_path}/p.png", f"mask={tmp_path}/small.png"],
            "edit.mask is 8 x 12, expected the size of edit.image, 16 x 12",
        ),
        ([f"image={tmp_path}/p.png", f"mask={tmp_path}/black.png"], "no white part"),
        ([f"image={tmp_path}/p.png", f"mask={tmp_path}/cut.png"], "edit.mask="),
    ):
        code, _, out, err = launcher(*line, *items, root)
        assert code == 2 and message in err and "Traceback" not in err and "licence" not in out


@pytest.mark.parametrize("kind", ["CMYK", "P", "LA", "16", "GIF"])
def test_pictures_of_every_kind_are_edited(kind: str, launcher: Any, tmp_path: Path) -> None:
    picture, path = Image.new("RGB", (16, 16), RED), tmp_path / "p.png"
    if kind == "16":
        picture = Image.fromarray(np.full((16, 16), 40000, dtype=np.uint16))
    elif kind in ("CMYK", "GIF"):
        path = tmp_path / ("p.jpg" if kind == "CMYK" else "p.gif")
        picture = picture.convert("CMYK") if kind == "CMYK" else picture
    else:
        picture = picture.convert(kind)
    picture.save(path, **({"save_all": True, "append_images": [picture.copy()]} if kind == "GIF" else {}))
    code, folder, _, _ = launcher(*LINE, f"image={path}", f"exp_root_dir={tmp_path}", "steps=8")
    assert code == 0 and Image.open(folder / "save/p.png").size == (16, 16)


def test_what_was_fitted_is_spread_back_where_it_came_from() -> None:
    image = torch.zeros(3, 30, 50)
    image[:, 10:20, 20:30] = 1
    for size in ((15, 15), (60, 60)):
        back = spread(fitted(image, size, "x"), (30, 50))
        assert back.shape == (1, 3, 30, 50) and (back[0] - image)[:, 12:18, 22:28].abs().max() < 0.15
        assert torch.equal(back[0, :, :, :9], torch.zeros(3, 30, 9)) and back[0, :, :, 25].sum() > 0
    assert torch.equal(spread(image[None], (30, 50)), image[None])


def test_the_settings_that_the_schema_knows_are_those_of_the_methods() -> None:
    assert tuple(METHODS) == settings_edit.EDITORS and set(QUIET) == set(groups.SOLVERS)
    assert tuple(STEPS) == groups.SAMPLERS[1:]
    inner = {field.name for settings in METHODS.values() for field in fields(settings)}
    named = {NAMES.get(field.name, field.name) for field in fields(EditConfig)} - set(COMMON)
    assert inner == named


def test_irfds_comes_down_by_the_times_of_the_references_sampler_unless_settings_were_chosen() -> None:
    theirs = [1 - i / 20 for i in range(20 - int(20 * 0.9), 21)]
    for prior, paper in (("instaflow", False), ("tiny_instaflow", True)):
        times = times_of(rectified_flow, method_of("irfds", prior, EditConfig(paper=paper)))
        assert torch.allclose(times.float(), torch.tensor(theirs), atol=1e-6)
    assert method_of("irfds", "tiny_sd", EditConfig()).down_steps == METHODS["irfds"].down_steps == 20
    assert method_of("irfds", "tiny_sd", EditConfig(paper=True, down_steps=5)).down_steps == 5


def test_flowedit_has_its_authors_times_unless_settings_were_chosen_or_the_line_speaks_of_them() -> None:
    """Theirs are diffusers' 50 times of SD3, of which the last 33 are done (n_max 33)."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(50)
    published = replace(method_of("flowedit", "sd3", EditConfig()), shift=3.0)
    times = times_of(rectified_flow, published)
    assert torch.allclose(times, torch.cat([scheduler.timesteps[-33:] / 1000, torch.zeros(1)]), atol=1e-6)
    for given in ({"steps": 8}, {"t_start": 0.7}):
        chosen = method_of("flowedit", "sd3", EditConfig(**given))
        assert chosen.of is None and chosen.t_start == given.get("t_start", 0.853)
    assert method_of("flowedit", "tiny_sd3", EditConfig(of=20)).t_start is None


def test_chosen_settings_are_valid_and_paper_leaves_them_out() -> None:
    assert set(TUNED) <= set(EMBEDDED)
    for prior, methods in TUNED.items():
        for name in methods:
            chosen, published = (method_of(name, prior, EditConfig(paper=paper)) for paper in (False, True))
            assert published == replace(METHODS[name], **PAPER.get(name, {})) and chosen != published
            assert method_of(name, prior, EditConfig(cfg=2.5)).scale == 2.5


def test_short_names_belong_to_the_task() -> None:
    line = ["task=invert", "image=a child's, cat.png", "source=a cat, asleep", "method=fireflow", "steps=7", "cfg=2"]
    config: Config = typed(compose(translate(line).overrides))
    assert (config.edit.image, config.edit.source) == ("a child's, cat.png", "a cat, asleep")
    assert (config.edit.method, config.edit.steps, config.edit.cfg, config.sample.steps) == ("fireflow", 7, 2.0, 20)
    with pytest.raises(UserError, match="unknown key"):
        translate(["prompt=x", "source=y"])
