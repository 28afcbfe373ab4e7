"""task=lift scene=image: its files under the reference's names, resume, the other modes, what is refused.

Seen to fail: snapshots named by the loop's steps instead of the optimiser's -> files; a start from no seed, renderings
numbered from the resumed step -> bit-equal; view prompts for an image -> one prompt; a lucky guess kept -> stays so;
seconds that count the pictures -> figures; the checks of per_step and of views left out -> refused.

The module takes about 12 s of one core: every run goes through the command line.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.tasks import lift
from threestudio_rf.trainer.checkpoint import load
from threestudio_rf.trainer.log import Metrics

LINE = ["scene=image", "prior=gaussian", "prompt=a red ball", "loss=rfds", "trainer.log_every=2"]
FEW = ["trainer.steps=6", "trainer.validate_every=2", "checkpoint.every=2", "scene.image.particles=3"]
SOME = ["scene.image.per_step=2", "scene.image.order=random", "optim.accumulate=2"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A finished run of three particles, two of which are seen per step, two steps making one."""
    from threestudio_rf.app.cli.start import start

    root = tmp_path_factory.mktemp("pictured")
    assert start([*LINE, *FEW, *SOME, f"exp_root_dir={root}"]) == 0
    (folder,) = (root / "tiny_image").iterdir()
    return folder


def values(folder):
    return load(folder).state["scene"]["values"]


def test_a_run_leaves_the_references_files_beside_those_of_every_run(pictured):
    names = {f"{step:05d}_{i:02d}.png" for step in (1, 2, 3) for i in range(3)}
    assert {path.name for path in pictured.glob("*.png")} == names
    expected = ["config.json", "metrics.json", "index.html", "csv_logs/metrics.csv", "ckpts/last.ckpt"]
    expected += ["save/it6-sheet.png", "save/it6-strip.png", "save/curves.png"]
    assert [name for name in expected if not (pictured / name).exists()] == []
    config = json.loads((pictured / "config.json").read_text())
    assert (config["prompt"], config["scene"]["image"]["particles"]) == ("a red ball", 3)
    with Image.open(pictured / "00003_00.png") as picture:
        assert picture.size == (8, 8)
    text = (pictured / "index.html").read_text()
    assert all(name in text for name in ("it6-sheet.png", "it6-strip.png", "curves.png"))


def test_its_figures_are_the_distances_of_its_particles_and_what_it_has_spent(pictured):
    figures = json.loads((pictured / "metrics.json").read_text())
    assert set(figures) >= {"diversity", "diversity_latent", "seconds", "network_calls", "peak_memory_mb"}
    assert 0 < figures["diversity"] < figures["diversity_latent"] < 1 and figures["network_calls"] == 6 * 2
    rows = Metrics(pictured / "csv_logs/metrics.csv").rows()
    assert [row["step"] for row in rows] == [2, 4, 6]
    times = [row["seconds"] for row in rows]
    assert 0 < times[0] < times[1] < times[2] < 5 and times[2] == pytest.approx(figures["seconds"])


@pytest.mark.parametrize("cut", [2, 3])
def test_a_run_that_is_resumed_ends_bit_equal_to_one_that_was_not(cut, pictured, launcher, tmp_path):
    root = f"exp_root_dir={tmp_path}"
    code, folder, _, _ = launcher(*LINE, *FEW, *SOME, root, f"trainer.steps={cut}", "checkpoint.every=0")
    assert code == 0 and not torch.equal(values(folder), values(pictured))
    if cut == 3:
        return  # an odd last step of the optimiser is another run
    code, resumed, _, _ = launcher(f"resume={folder}", "trainer.steps=6", root)
    assert code == 0 and resumed == folder and torch.equal(values(folder), values(pictured))
    assert (folder / "00003_02.png").read_bytes() == (pictured / "00003_02.png").read_bytes()


def test_pixels_are_pictures_of_the_priors_size_in_their_bound(launcher, tmp_path):
    line = [*LINE, "scene.image.kind=pixels", "scene.image.bound=clip", "scene.image.size=16", "trainer.steps=3"]
    code, folder, _, _ = launcher(*line, f"exp_root_dir={tmp_path}")
    found = values(folder)
    assert code == 0 and found.shape == (4, 3, 16, 16) and found.std() > 0.1
    code, folder, _, _ = launcher(*LINE, "scene.image.kind=pixels", "trainer.steps=1", f"exp_root_dir={tmp_path}")
    assert code == 0 and values(folder).shape == (4, 3, 8, 8)


def test_all_particles_become_the_picture_that_the_prompt_names(launcher, tmp_path):
    line = [*LINE, "trainer.steps=120", "trainer.validate_every=0", "optim.lr_image=0.05", "loss.scale=1"]
    code, folder, _, _ = launcher(*line, "loss.t_law=annealed", "loss.t_min=0.02", f"exp_root_dir={tmp_path}")
    with Image.open(folder / "00120_03.png") as picture:
        red, green, blue = (sum(band.getdata()) / 64 / 255 for band in picture.split())
    assert code == 0 and abs(red - 0.85) < 0.1 and abs(green - 0.1) < 0.1 and abs(blue - 0.1) < 0.1


def test_the_other_modes_show_a_finished_run_again_and_export_says_there_is_nothing(pictured, launcher):
    root = f"exp_root_dir={pictured.parents[1]}"
    for path in (*pictured.glob("00003_*.png"), pictured / "save/it6-sheet.png"):
        path.unlink()
    code, folder, _, _ = launcher("--validate", f"resume={pictured}", root)
    assert (code, folder) == (0, pictured) and len(list(pictured.glob("00003_*.png"))) == 3
    assert launcher("--test", f"resume={pictured}", root)[0] == 0 and (pictured / "save/it6-sheet.png").exists()
    code, _, _, err = launcher("--export", f"resume={pictured}", root)
    assert code == 2 and "no surface" in err
    code, _, _, err = launcher("task=evaluate", f"resume={pictured}", root, "prompt=a red hamburger")
    assert code == 2 and "red hamburger" in err


def test_an_image_has_one_prompt_with_the_view_word_that_is_asked_for():
    heard = []

    class Listening:
        def embed(self, prompts):
            heard.append(prompts)
            return torch.zeros(0)

    for view in ("", "front"):
        config = typed(
            compose(["scene=image", "prompt='a red ball'", "negative_prompt=blur", f"scene.image.view={view}"])
        )
        with pytest.raises(TypeError):
            embed_views(config, Listening())
    assert heard == [["a red ball", "blur"], ["a red ball, front view", "blur"]]


class Watched:
    """What `watch` needs of a Lift."""

    def __init__(self):
        self.figures = {"seconds": 0.0, "network_calls": 0.0}
        self.run = self.prior = self.step = None
        self.scene = object()


def test_a_picture_counts_as_right_from_when_it_stays_so(monkeypatch):
    made, shares = Watched(), iter([0.75, 0.25, 0.5, 1.0])
    monkeypatch.setattr(lift, "shown", lambda _: SimpleNamespace(snapshot=lambda _: torch.zeros(1)))
    monkeypatch.setattr(lift, "page_so_far", lambda _: None)
    found = []
    for second in (1.0, 2.0, 3.0, 4.0):
        made.figures |= {"seconds": second, "network_calls": 10 * second}
        lift.watch(made, lambda _: next(shares))
        found.append((made.figures.get("seconds_to_right"), made.figures.get("network_calls_to_right")))
    assert found == [(1.0, 10.0), (None, None), (3.0, 30.0), (3.0, 30.0)]
    lift.watch(made, None)
    assert made.figures["seconds_to_right"] == 3.0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["scene.image.per_step=5", "scene.image.particles=4"], "scene.image.per_step=5"),
        (["scene.image.bound=sigmoid"], "scene.image.bound=sigmoid"),
        (["scene.image.kind=pixels", "scene.image.bound=none"], "scene.image.bound=none"),
        (["scene.image.kind=pixels", "scene.image.size=12"], "scene.image.size=12"),
        (["loss.perp_neg=true"], "loss.perp_neg=True"),
        (["loss.lambda_orient=1"], "loss.lambda_orient=1"),
        (["loss.lambda_z_variance=[0,1,10]"], "loss.lambda_z_variance="),
    ],
)
def test_what_does_not_go_with_pictures_is_refused_by_name(given, named, launcher, tmp_path):
    code, _, _, err = launcher(*LINE, *given, f"exp_root_dir={tmp_path}")
    assert code == 2 and err.startswith("error: ") and named in err
