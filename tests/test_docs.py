"""What README and docs show works: every command is accepted as it is printed, those of README run, shortened by
settings, and so does every piece of Python.

Seen to fail: a setting of a command misspelt, a name that an example does not import.
"""

from __future__ import annotations

import re
import shlex
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


def lines_of(page: Path) -> list[str]:
    """The commands of a page, in code blocks (with their continuations) and between back quotes."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    joined = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    quoted = re.findall(
        r"`((?:python launch\.py|threestudio-rf) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    )
    commands = [line for line in [*joined, *quoted] if line.startswith(("python launch.py ", "threestudio-rf "))]
    return [re.sub(r"\s+", " ", command) for command in commands]


COMMANDS = sorted({command for page in PAGES for command in lines_of(page)})
CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]
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
    small = ["camera.sizes=[16]", "camera.eval_size=16", "camera.test_views=1", "export.resolution=12"]
    small += ["scene.encoding.log2_table=8", "prior=gaussian", "trainer.steps=1", "evaluate.auto=false"]
    assert start([*small, "prompt=a red ball", f"exp_root_dir={root}"]) == 0
    (folder,) = (root / "tiny").iterdir()
    return folder


@pytest.mark.parametrize("command", COMMANDS)
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


SHORT = {
    "lift": [
        "camera.sizes=[16]",
        "camera.milestones=[]",
        "camera.eval_size=16",
        "camera.test_views=1",
        "camera.validation_views=1",
        "scene.encoding.log2_table=8",
        "export.resolution=12",
        "evaluate.auto=false",
        "trainer.steps=1",
        "trainer.validate_every=0",
        "trainer.progress=0",
    ],
    "image": ["trainer.steps=1", "trainer.validate_every=0", "trainer.progress=0", "evaluate.auto=false"],
    "sample": ["sample.n=1", "sample.steps=2"],
    "edit": ["edit.steps=2"],
    "export": ["export.resolution=12"],
    "evaluate": ["evaluate.size=8"],
    "doctor": [],
}
ELSEWHERE = ("prior.path=", "task=grid", "task=train_tiny", "--help", "configs/rfds_sd3.yaml", "loss=tiny_ours")
"""Commands that need released weights, those with tests of their own, and one whose single step takes long."""


def task_of(words: list[str]) -> str:
    """The task that a command names."""
    return next((word.removeprefix("task=") for word in words if word.startswith("task=")), "lift")


def once(lines: list[str]) -> list[str]:
    """The commands without those that differ from another one in prompt and seed alone."""
    kinds = {}
    for line in lines:
        words = shlex.split(line, comments=True)[2:]
        kinds[tuple(word for word in words if not word.startswith(("prompt=", "seed=")))] = line
    return sorted(line for line in kinds.values() if not any(word in line for word in ELSEWHERE))


@pytest.mark.parametrize("command", once(lines_of(PAGES[0])))
def test_a_command_of_the_readme_runs(command: str, run: Path, tmp_path: Path, monkeypatch) -> None:
    words = words_of(command, run, tmp_path)
    if BARE & set(words):
        return
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), (200, 40, 40)).save(tmp_path / "ball.png")
    short = SHORT["image" if "scene=image" in words else task_of(words)]
    short = [item for item in short if not (item.startswith("scene.") and any("init=" in word for word in words))]
    short += ["prior.bank_views=30"] * ("experiment=tiny_exact" in words)
    place = [] if any(word.startswith("resume=") for word in words) else [f"exp_root_dir={tmp_path}/out"]
    assert start([*words, *short, *place]) == 0


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
