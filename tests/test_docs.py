"""What README and docs show works: every command is accepted as it is printed and run, shortened by settings, and so is
every piece of Python; arguments of scripts, names of other commands, links and figures are those that are there.

Seen to fail: a setting of a command misspelt, a name that an example does not import, an option that a script does not
have, a link to a heading that was renamed, a figure of README changed.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from threestudio_rf.app.cli.main import settings_of
from threestudio_rf.app.cli.start import start
from threestudio_rf.app.settings.flags import translate

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BARE = {"...", "[flags]", "[key=value"}
"""Lines that show no command but the shape of one."""
OURS = ("python launch.py ", "threestudio-rf ")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def said_by(page: Path) -> list[str]:
    """The lines of code blocks of a page (with their continuations) and what stands between back quotes."""
    text = text_of(page)
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    joined = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    quoted = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [re.sub(r"\s+", " ", line) for line in [*joined, *quoted]]


def lines_of(page: Path) -> list[str]:
    """The commands of a page that start the program."""
    return [line for line in said_by(page) if line.startswith(OURS)]


COMMANDS = sorted({command for page in PAGES for command in lines_of(page)})
SAID = {line for page in [*PAGES, ROOT / "CONTRIBUTING.md"] for line in said_by(page)}
SCRIPTS = {line for line in SAID if line.startswith("python bench/") and len(line.split()) > 2}
OTHERS = {line for line in SAID if line.startswith(("make ", "pip install", "jupyter ", "bench/"))}
OTHERS |= {line.removeprefix("python ") for line in SAID if line.startswith("python bench/")}
MANY = {line for line in SAID if line.startswith("torchrun ")}
CODE = [page for page in PAGES if "```python" in text_of(page)]
FILLED = {"loss=rfds_fading": "loss=rfds", "my.yaml": ""}
"""What a page tells its reader to write first."""


def words_of(command: str, finished: Path, config: Path) -> list[str]:
    """The arguments, with something in the place of what a reader fills in."""
    words = shlex.split(command, comments=True)
    words = words[1:] if words[0] == "threestudio-rf" else words[2:]
    filled = []
    for word in words:
        word = re.sub(
            r"=\.\.\.$", "=a red ball", word.replace("<run>", str(finished)).replace("model.glb", str(finished))
        )
        word = re.sub(r"outputs/\S+@\.\.\.", str(finished), word)
        filled.append(FILLED.get(word, word) or str(config))
    return filled


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("docs")
    small = [
        "camera.sizes=[16]",
        "camera.views=[2]",
        "camera.eval_size=16",
        "camera.test_views=1",
        "export.resolution=12",
    ]
    small += ["scene.encoding.log2_table=8", "prior=gaussian", "trainer.steps=1", "evaluate.auto=false"]
    assert start([*small, "prompt=a red ball", f"exp_root_dir={root}"]) == 0
    (folder,) = (root / "tiny").iterdir()
    return folder


FIELD = ["scene.encoding.log2_table=8", "camera.milestones=[]", "camera.views=[1]", "export.texture=none"]
LOOKS = ["camera.sizes=[16]", "camera.eval_size=16", "camera.test_views=1", "camera.validation_views=1"]
LOOKS += ["camera.video_scale=1", "export.resolution=12", "evaluate.auto=false"]
BRIEF = ["trainer.steps=1", "trainer.validate_every=0", "trainer.progress=0"]
SHORT = {
    "lift": [*LOOKS, *BRIEF, *FIELD],
    "image": [*BRIEF, "evaluate.auto=false"],
    "sample": ["sample.n=1", "sample.steps=2"],
    "edit": ["edit.steps=3"],
    "invert": ["edit.steps=3"],
    "export": ["export.resolution=12"],
    "evaluate": ["evaluate.size=8"],
    "doctor": [],
}
ELSEWHERE = {
    "prior.path=": "needs released weights; such priors run in app/test_folders.py",
    "prior=sana": "needs released weights; such priors run in app/test_folders.py",
    "experiment=rfds_sd3": "needs released weights; read in app/test_peers.py",
    "task=grid": "runs in app/test_grid.py",
    "task=train_tiny": "runs in tiny/test_golden.py",
    "--help": "runs in app/test_start.py",
    "viewer=true": "runs in app/test_viewer.py",
    "refine=true": "runs in app/test_mesh_lift.py",
    "submitit": "needs Slurm; sweeps run in app/test_edges.py",
    "loss=rfds_fading": "needs the reader's own loss; runs in distill/test_extend.py",
}
"""Commands that are only accepted here, and why; where they run."""


def task_of(words: list[str]) -> str:
    """The task that a command names."""
    return next((word.removeprefix("task=") for word in words if word.startswith("task=")), "lift")


def once(lines: list[str]) -> list[str]:
    """The commands without those that differ from another one in prompt and seed alone."""
    kinds = {}
    for line in lines:
        words = shlex.split(line, comments=True)[2 if line.startswith("python") else 1 :]
        kinds[tuple(word for word in words if not word.startswith(("prompt=", "seed=")))] = line
    return sorted(line for line in kinds.values() if not any(word in line for word in ELSEWHERE))


def shortened(words: list[str], readme: bool) -> list[str]:
    """Settings that make a command short. Those of README keep their prior, but for a loss of many draws; others take
    the closed form's, or where a twin is needed a small network."""
    short = list(SHORT["image" if "scene=image" in words else task_of(words)])
    if any("init=" in word for word in words):
        short = [item for item in short if not item.startswith("scene.")]
    if "experiment=tiny_refine" in words or "preset=refine" in words:
        short += ["scene.mesh.resolution=8", "scene.mesh.paint_steps=2"]
    if "experiment=tiny_exact" in words:
        return [*short, "prior.bank_views=30"]
    if {"loss=sim", "loss=trace"} & set(words):
        return [*short, "prior=tiny_sd"]
    own = readme and "loss=tiny_ours" not in words
    own = own or any(word.startswith(("prior=", "resume=")) for word in words)
    return short if own or task_of(words) in ("doctor", "export", "evaluate") else [*short, "prior=gaussian"]


def cut(words: list[str]) -> list[str]:
    """A sweep with the first value of each list, by Hydra's own launcher."""
    if "-m" not in words:
        return words
    first = [re.sub(r"=('[^']*'|[^',]*),.*", r"=\1", word) for word in words]
    return [word for word in first if not word.startswith("hydra/launcher=")]


OF_README = once(lines_of(PAGES[0]))
OF_DOCS = [line for line in once([*lines_of(PAGES[0]), *COMMANDS]) if line not in OF_README]


@pytest.mark.parametrize("command", [*OF_README, *OF_DOCS])
def test_a_command_of_the_docs_runs(command: str, run: Path, tmp_path: Path, monkeypatch) -> None:
    words = cut(words_of(command, run, tmp_path / "my.yaml"))
    if BARE & set(words):
        return
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (64, 64), (200, 40, 40))
    (tmp_path / "photos").mkdir()
    for name in ("ball.png", "cat.png", "big.jpg", "photos/a.png"):
        picture.save(tmp_path / name)
    Image.new("L", (64, 64), 255).save(tmp_path / "white_may_change.png")
    (tmp_path / "my.yaml").write_text("name: mine\nprior: gaussian\nloss: {scale: 7.5}\n")
    place = [] if any(word.startswith("resume=") for word in words) else [f"exp_root_dir={tmp_path}/out"]
    assert start([*words, *shortened(words, command in OF_README), *place]) == 0


@pytest.mark.parametrize("command", [line for line in COMMANDS if line not in (*OF_README, *OF_DOCS)])
def test_a_command_of_the_docs_is_accepted(command: str, run: Path, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("name: mine\nsystem:\n  guidance:\n    guidance_scale: 7.5\n")
    words = words_of(command, run, config)
    if BARE & set(words) or words == ["--help"]:
        return
    for word in words if "-m" in words else []:
        words[words.index(word)] = word.split(",")[0] if "'" not in word else "prompt=a red ball"
    words = [word for word in words if word != "-m" and not word.startswith("hydra/")]
    settings_of(translate(words))


def test_what_only_is_accepted_runs_where_it_is_said() -> None:
    for why in ELSEWHERE.values():
        assert (ROOT / "tests" / re.search(r"\S+\.py", why)[0]).is_file(), why
    assert [word for word in ELSEWHERE if not any(word in command for command in COMMANDS)] == []


class Parsed(Exception):
    """The arguments of a script are good."""


@pytest.mark.parametrize("command", sorted(SCRIPTS))
def test_a_script_of_bench_takes_its_arguments_as_printed(command: str, monkeypatch) -> None:
    parse, parse_known, whole = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, []

    def parsed(self, *given, **named):
        whole.append(self)  # no argument may be left over
        parse(self, *given, **named)
        raise Parsed

    def known(self, *given, **named):
        found = parse_known(self, *given, **named)
        if self in whole:
            return found
        raise Parsed

    words = shlex.split(command, comments=True)[1:]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", known)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_other_commands_name_what_is_there() -> None:
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in OTHERS:
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert [word for word in words[1:] if "=" not in word and word not in targets] == [], line
        elif words[0] == "pip":
            names = [word for word in words[2:] if not word.startswith("-")]
            assert [name for name in names if name not in (".", "nerfstudio") and f'"{name}' not in extras] == [], line
        elif words[0] == "jupyter":
            assert (ROOT / words[-1]).is_file(), line
        else:
            assert (ROOT / words[0]).is_file(), line
    assert {shlex.split(line)[0] for line in OTHERS} >= {"make", "pip", "jupyter", "bench/device.sh"}


def test_commands_of_several_processes_are_accepted(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for line in MANY:
        words = shlex.split(line, comments=True)
        settings_of(translate(words_of("python " + shlex.join(words[words.index("launch.py") :]), run, tmp_path)))
    assert len(MANY) >= 2


def test_scripts_of_a_shell_are_scripts(tmp_path: Path) -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```\n(#!/bin/bash\n.*?)```", text_of(page), re.DOTALL)]
    assert blocks and [subprocess.run(["bash", "-n"], input=block, text=True).returncode for block in blocks] == [0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_to_something(page: Path) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), link
        heads = re.findall(r"^#+ (.*)", text_of(there), flags=re.MULTILINE) if anchor else []
        made = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in made, link


def test_the_variables_that_are_obeyed_stand_in_the_docs() -> None:
    docs = text_of(ROOT / "docs/priors.md")
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "CUDA_VISIBLE_DEVICES"):
        assert f"`{name}" in docs, name


def test_newcomers_find_a_map_words_and_conclusions() -> None:
    readme, page = text_of(PAGES[0]), text_of(ROOT / "docs/README.md")
    for reader in ("a laptop and curiosity", "a card and SD3", "mathematics", "a new loss", "threestudio's configs"):
        (row,) = [line for line in readme.splitlines() if line.startswith("| ") and reader in line]
        assert "](" in row
    assert readme.index("| you have | do this |") < readme.index("## Two commands") < readme.index("## What")
    words = set(re.findall(r"^\| \*\*(.+?)\*\*", page, flags=re.MULTILINE))
    assert {"RFDS", "RFDS-Rev", "Janus", "twin", "draws"} <= words
    assert {page.name for page in PAGES[1:]} - {"README.md"} <= set(re.findall(r"\]\(([\w.]+\.md)", page))
    for name, conclusion in (("grid", "## What it shows"), ("editing", "**In short**")):
        text = text_of(ROOT / f"docs/{name}.md")
        assert text.index(conclusion) < text.index("\n|---")
    assert "What it is for:" in text_of(ROOT / "docs/tiny_world.md")[:200]


def test_every_kind_has_a_test_that_is_there() -> None:
    rows = [line for line in text_of(ROOT / "tests/kinds.md").splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| brought")]
    for row in rows:
        file, _, name = row.split("|")[-2].strip().strip("`").partition("::")
        assert f"def {name}(" in text_of(ROOT / "tests" / file), row
    assert len(rows) > 100


def test_figures_of_readme_are_those_of_the_pages_that_measure_them() -> None:
    """README rounds to two digits what the gallery's table and docs/benchmarks.md print."""
    readme, gallery = text_of(PAGES[0]), text_of(ROOT / "docs/gallery.md")
    sections = {part.splitlines()[0]: part for part in gallery.split("\n## ")}
    for preset, prompt in (("tiny", "a red mushroom"), ("tiny", "a purple donut"), ("tiny_exact", "a brown chair")):
        (row,) = [line.split("|") for line in sections[preset].splitlines() if line.startswith(f"| {prompt} |")]
        volume, outline = (f"{float(row[place]):.2f}" for place in (2, 3))
        rows = [line for line in readme.splitlines() if line.startswith("| `python") and prompt[2:] in line]
        (line,) = [line for line in rows if "IoU" in line]
        assert f"outline IoU {outline}, volume IoU {volume}" in line, line
    (measured,) = [
        line for line in text_of(ROOT / "docs/benchmarks.md").splitlines() if "`make demo` without inst" in line
    ]
    figures = re.search(r"alone; \d+ s; (0\.\d+), (0\.\d+); ", measured)
    assert figures is not None
    outline, volume = (f"{float(figure):.2f}" for figure in figures.groups())
    (line,) = [line for line in readme.splitlines() if line.startswith("| `make demo`")]
    assert f"outline IoU {outline}, volume IoU {volume}" in line, line


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 40
    assert sum("task=edit" in command for command in COMMANDS) > 3


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
@pytest.mark.usefixtures("own_tables")
def test_the_python_of_a_page_runs_as_it_is_printed(page: Path, tmp_path: Path, monkeypatch) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "threestudio_rf").symlink_to(ROOT / "threestudio_rf")
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), {"__name__": "docs"})
