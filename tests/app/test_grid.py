"""task=grid: its cells, what is run again and what is not, failures, tables, the sheet, the page it is put into.

Seen to fail: settings of `set` that win over those of a method, names without the method -> every combination; a cell
with other settings taken for finished -> not repeated; no resume=latest -> cut off; a failure not counted as 0, what is
not known counted as 0 -> means; failed cells left out of the list -> runs every cell; the cells of all priors in every
block -> the sheet; cells of the page without a link -> runs every cell; first and last exchanged -> a twin's loss.

The module takes about 15 s of one core: its runs go through the command line, two of them as processes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from urllib.parse import unquote

import pytest
import torch

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.report.grid_table import (
    Result,
    csv_text,
    failures,
    means,
    sheet,
    table,
    thumbnail,
    twin_losses,
    write_grid,
)
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.app.settings.train_tiny import GridConfig
from threestudio_rf.app.tasks import grid
from threestudio_rf.export.media import png
from threestudio_rf.trainer.log import Metrics

COMMON = '["scene=image","trainer.steps=2","trainer.validate_every=1","scene.image.particles=2"]'
GRID = ["task=grid", "grid.name=small", "grid.priors=[gaussian]", f"grid.set={COMMON}", "device=cpu"]


def cells(tmp_path, **given):
    settings = {"methods": ["rfds"], "priors": ["gaussian"], "prompts": ["a red ball"], **given}
    return grid.cells_of(GridConfig(name="small", **settings), tmp_path)


def test_every_combination_is_a_cell_with_a_stable_name_of_its_own(tmp_path):
    given = {"methods": ["rfds", "strong loss=rfds loss.scale=50"], "prompts": ["a red ball", "a/b, 'c'"]}
    found = cells(tmp_path, **given, seeds=[0, 7], set=["trainer.steps=9", "loss.scale=7"])
    assert len(found) == 8 == len({cell.folder for cell in found})
    assert [cell.folder for cell in found] == [
        cell.folder for cell in cells(tmp_path, **given, seeds=[0, 7], set=["trainer.steps=5"])
    ]
    first, strong = found[0], found[4]
    assert first.folder == tmp_path / "cells" / "rfds+gaussian+a_red_ball+seed0"
    assert set(first.overrides) == {
        "trainer.steps=9",
        "loss.scale=7",
        "prior=gaussian",
        "loss=rfds",
        "prompt=a red ball",
        "seed=0",
    }
    assert strong.method == "strong" and {"loss=rfds", "loss.scale=50"} <= set(strong.overrides)
    assert len([item for item in strong.overrides if item.startswith("loss.scale=")]) == 1
    assert "prompt=a/b, 'c'" in found[2].overrides and found[2].folder.parent == tmp_path / "cells"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"methods": []}, "grid.methods"),
        ({"prompts": []}, "grid.prompts"),
        ({"methods": ["loss=rfds"]}, "<label>"),
        ({"methods": ["rfds scale"]}, "rfds scale"),
        ({"methods": ["rfds", "rfds loss.scale=2"]}, "twice"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(given, named, tmp_path):
    with pytest.raises(UserError, match=named):
        cells(tmp_path, **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A grid of one method that works and one that does not, run in this process."""
    from threestudio_rf.app.cli.start import start

    root = tmp_path_factory.mktemp("grid")
    line = [*GRID, 'grid.methods=[rfds,"broken loss=rfds loss.scale=-1"]', "grid.prompts=[a red ball]"]
    code = start([*line, "grid.jobs=0", f"exp_root_dir={root}"])
    return code, line, root / "grid" / "small"


def rows_of(folder):
    return list(csv.DictReader(io.StringIO((folder / "grid.csv").read_text())))


def test_a_grid_runs_every_cell_and_shows_the_failed_ones_with_their_error(done):
    code, _, folder = done
    rows = rows_of(folder)
    assert code == 1 and [row["status"] for row in rows] == ["finished", "failed"]
    assert "loss.scale=-1" in rows[1]["error"] and rows[0]["error"] == rows[1]["diversity"] == ""
    assert float(rows[0]["calls_per_step"]) == 2 and float(rows[0]["diversity"]) > 0
    text = (folder / "grid.md").read_text()
    assert "| gaussian | rfds | 1/1 |" in text and "| gaussian | broken | 0/1 |" in text
    assert text.count("- broken, gaussian, ") == 1 and (folder / "grid.png").stat().st_size > 1000
    page = (folder / "index.html").read_text()
    assert rows[1]["error"].split(":")[0] in page and "http" not in page
    (linked,) = re.findall(r'<a href="(cells/[^"]+)"><img src="data:image/png;base64,', page)
    assert (folder / unquote(linked)).exists() and "<td>gaussian</td><td>rfds</td>" in page
    assert (folder / "log.txt").exists() and json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_a_finished_cell_is_not_repeated_a_changed_one_is_and_a_failed_one_is_tried_again(done, launcher):
    _, line, folder = done
    before = rows_of(folder)[0]["run"]
    line = [item for item in line if not item.startswith("grid.methods")]
    mended = 'grid.methods=[rfds,"broken loss=rfds loss.scale=1"]'
    code, _, out, _ = launcher(*line, mended, "grid.jobs=0", f"exp_root_dir={folder.parents[1]}")
    rows = rows_of(folder)
    assert code == 0 and "2 cells, 1 of them finished" in out
    assert rows[0]["run"] == before and rows[1]["status"] == "finished"
    other = [item.replace("trainer.steps=2", "trainer.steps=3") for item in line]
    code, _, out, _ = launcher(*other, "grid.methods=[rfds]", "grid.jobs=0", f"exp_root_dir={folder.parents[1]}")
    assert code == 0 and "1 cells, 0 of them finished" in out
    assert [(row["steps"], row["run"] == before) for row in rows_of(folder)] == [("3", False)]


def test_cells_are_processes_of_their_own_and_one_that_was_cut_off_goes_on(launcher, tmp_path):
    line = [*GRID, "grid.methods=[rfds]", "grid.prompts=[a red ball]", f"exp_root_dir={tmp_path}"]
    assert launcher(*line, "grid.jobs=0")[0] == 0
    (run,) = (tmp_path / "grid/small/cells/rfds+gaussian+a_red_ball+seed0").glob("*@*")
    (run / "metrics.json").unlink()
    code, _, _, _ = launcher(*line, "grid.jobs=2")
    assert code == 0 and (run / "metrics.json").exists()
    assert "resume=latest" in (run / "cmd.txt").read_text().splitlines()[-1]
    assert rows_of(tmp_path / "grid/small")[0]["run"].endswith(run.name)


def result(method="rfds", prior="tiny_sd3", prompt="a", seed=0, run=None, **figures):
    return Result(method, prior, prompt, seed, figures=figures or None, error="" if figures else "boom", run=run)


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "run/configs").mkdir(parents=True)
    (tmp_path / "run/configs/parsed.yaml").write_text("trainer: {steps: 50}\n")
    for i in range(8):
        png(tmp_path / f"run/save/it50-test/{i}.png", torch.full((3, 4, 4), i / 8))
    return tmp_path / "run"


def test_means_leave_out_what_is_not_known_and_count_a_failure_as_wrong(run_folder):
    given = {"run": run_folder, "colour_error": 10.0, "seconds": 5.0, "network_calls": 100.0}
    group = [
        result(**given, recognised=1.0, seconds_to_right=2.0),
        result(seed=1, **given, recognised=0.5, seconds_to_right=None),
        result(seed=2),
    ]
    found = means(group)
    assert found["recognised"] == pytest.approx(0.5) and found["colour_error"] == 10
    assert found["seconds_per_step"] == pytest.approx(0.1) and found["calls_per_step"] == 2
    assert found["seconds_to_right"] == 2 and found["janus"] is None
    assert "| tiny_sd3 | rfds | 2/3 | 10 | 0.5 | 0.1 | 2 | 2 (1/3) |" in table(group)
    assert means([result()])["recognised"] is None
    assert failures(group) == "Without figures:\n\n- rfds, tiny_sd3, 'a', seed 2: boom" and failures(group[:2]) == ""
    assert csv_text(group).splitlines()[3].startswith("rfds,tiny_sd3,a,2,failed")


def test_a_twins_loss_is_its_mean_over_the_first_and_the_last_fifth(run_folder):
    assert twin_losses(run_folder) == {}
    log = Metrics(run_folder / "csv_logs/metrics.csv")
    for step in range(1, 11):
        log.add(step, {"twin_loss": 1 / step} if step > 1 else {})
    assert twin_losses(run_folder) == pytest.approx(
        {"twin_loss_first": (1 / 2 + 1 / 3) / 2, "twin_loss_last": 0.19 / 1.8}
    )
    group = [result(run=run_folder, recognised=1.0), result(seed=1)]
    assert "twin's loss, first | last |" in table(group) and "| 0.417 | 0.106 |" in table(group)


def test_the_sheet_has_a_row_per_method_and_a_block_per_prior(run_folder):
    def at(method, prior):
        return Result(method, prior, "a", 0, figures=None, error="", run=run_folder if prior == "b" else None)

    picture = sheet([at(method, prior) for method in ("x", "y") for prior in ("a", "b")])
    assert picture.shape[1] == sheet([at("x", "a"), at("y", "a")]).shape[1]
    left, right = picture[:, 60:, :].chunk(2, 2)
    assert left.mean() > right.mean() + 0.1
    corners = thumbnail(run_folder)[0, ::7, ::7]
    assert corners.flatten().tolist() == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.01)
    assert torch.equal(thumbnail(None), thumbnail(run_folder.parent)) and thumbnail(None).unique().numel() == 1


def test_the_tables_are_put_between_two_lines_of_a_page(run_folder, tmp_path):
    page = tmp_path / "docs" / "grid.md"
    page.parent.mkdir()
    page.write_text("# Grid\n\n<!-- g -->\nold\n<!-- end of g -->\n\nafter\n")
    for _ in range(2):
        write_grid(tmp_path, [result(run=run_folder, recognised=1.0)], title="g", docs=str(page))
    text = page.read_text()
    assert text.startswith("# Grid\n\n<!-- g -->\n\n| prior |") and text.endswith("<!-- end of g -->\n\nafter\n")
    assert "old" not in text and text.count("| rfds |") == 1 and (tmp_path / "docs/images/g.png").exists()
    with pytest.raises(UserError, match="<!-- h -->"):
        write_grid(tmp_path, [result()], title="h", docs=str(page))


@pytest.mark.parametrize("name", ["grid_2d", "grid_3d", "vsd_2d", "twins"])
def test_every_cell_of_a_shipped_grid_is_a_run_that_its_settings_allow(name, tmp_path):
    config = typed(compose(translate(["task=grid", f"grid=configs/grid/{name}.yaml"]).overrides))
    found = grid.cells_of(config.grid, tmp_path)
    wanted = {"tiny_sd"} if name in ("vsd_2d", "twins") else {"tiny_sd3", "tiny_instaflow"}
    assert config.grid.name == name and {cell.prior for cell in found} >= wanted
    for cell in found:
        firsts = (cell.prompt == found[0].prompt) + (cell.prior == found[0].prior) + (cell.method == found[0].method)
        if firsts == 3 or (firsts == 2 and cell.prompt == found[0].prompt):
            made = typed(compose(translate(list(cell.overrides)).overrides))
            check(made)
            assert (made.scene.name == "image") == (name != "grid_3d") and made.prior.name == cell.prior
