"""The arrows of the house: who may import whom, read from the syntax tree of every file, also inside functions.

A forbidden arrow, a foreign library outside its adapter or at the top of a module, and a module that needs CUDA or an
optional library to be imported each fail here.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "threestudio_rf"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

MAY_IMPORT = {
    "core": set(),
    "scenes": set(),
    "priors": {"core"},
    "distill": {"core"},
    "edit": {"core"},
    "tiny": {"core", "priors", "scenes"},
    "export": {"core", "scenes"},
    "trainer": {"core", "priors", "distill", "edit", "scenes"},
    "__main__": {"app"},
    "__init__": {"app"},
    "app": {"core", "priors", "distill", "edit", "scenes", "tiny", "export", "trainer"},
}
ONLY_IN = {
    "diffusers": {"priors"},
    "peft": {"priors"},
    "transformers": {"priors"},
    "hydra": {"app"},
    "omegaconf": {"app"},
}
ONLY_INSIDE_FUNCTIONS = {"diffusers", "peft", "transformers", "trimesh", "skimage", "imageio", "nerfacc", "tinycudann"}


ROOMS = (
    ("errors", "console"),
    ("settings",),
    ("build",),
    ("run",),
    ("report",),
    ("tasks",),
    ("cli",),
    ("api", "guidance", "objects", "pictures", "results"),
)
"""The rooms of app, each may import those before it."""
LARGEST_FOLDER = 14
"""Python files that lie flat in one folder at the most."""


def postpones(node: ast.AST) -> bool:
    """Functions, and blocks that only a type checker reads."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def imported(tree: ast.Module, module: str) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, whether importing the module leaves it alone) of every import in that dotted module."""
    lazy = {id(inner) for outer in ast.walk(tree) if postpones(outer) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*home, *([node.module] if node.module else [])])
            names = [f"{source}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                names = [str(node.args[0].value)]
        yield from ((name, id(node) in lazy) for name in names)


def broken(source: str, module: str) -> list[str]:
    """What a module of that dotted name breaks, one line each."""
    folder = [*module.split("."), ""][1]
    found = []
    for name, lazy in imported(ast.parse(source), module):
        top, *rest = name.split(".")
        if top == PACKAGE and rest[0] in MAY_IMPORT and rest[0] not in MAY_IMPORT.get(folder, set()) | {folder}:
            found.append(f"{module}: {folder or 'the package'} imports {name}")
        if top in ONLY_IN and folder not in ONLY_IN[top]:
            found.append(f"{module}: {name} outside {', '.join(ONLY_IN[top])}")
        if top in ONLY_INSIDE_FUNCTIONS and not lazy:
            found.append(f"{module}: {name} at the top of the module")
    return found


def dotted(file: Path) -> str:
    """The dotted name; a package keeps its __init__, so that relative imports resolve in one way."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_a_module_follows_the_arrows(file: Path) -> None:
    assert broken(file.read_text(), dotted(file)) == []


def test_every_folder_has_its_arrows() -> None:
    folders = {file.relative_to(ROOT / PACKAGE).parts[0] for file in FILES if file.parent != ROOT / PACKAGE}
    assert folders <= MAY_IMPORT.keys()


def floor_of(module: str) -> int:
    """How high a module of app stands."""
    room = module.split(".")[2]
    return next(height for height, rooms in enumerate(ROOMS) if room in rooms)


@cache
def links() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at the top or inside functions."""
    modules = {dotted(file).removesuffix(".__init__"): file for file in FILES}
    found: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = [name for name, _ in imported(ast.parse(file.read_text()), dotted(file))]
        found[module] = {known for name in names for known in (name, name.rpartition(".")[0]) if known in modules}
        found[module] -= {module, PACKAGE}
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules that reach themselves."""
    found = []
    for start in graph:
        seen, waiting = set[str](), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        if start in seen:
            found.append(start)
    return found


def test_no_module_imports_itself_through_others_not_even_inside_functions() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert circles(links()) == []


def test_a_room_of_the_application_imports_those_below_it_only() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in links().items()
        for name in names
        if module.startswith(f"{PACKAGE}.app.")
        and name.startswith(f"{PACKAGE}.app.")
        and floor_of(name) > floor_of(module)
    ]
    assert wrong == []


def test_the_tiny_world_does_not_know_how_its_priors_are_trained() -> None:
    world = {module: names for module, names in links().items() if module.startswith(f"{PACKAGE}.tiny.world.")}
    assert world and not [
        name for names in world.values() for name in names if name.startswith(f"{PACKAGE}.tiny.train")
    ]


def test_no_folder_is_a_flat_heap() -> None:
    count = Counter(file.parent for file in FILES if file.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in count.items() if n > LARGEST_FOLDER} == {}


def test_the_launcher_knows_nothing_but_the_application() -> None:
    launcher = ROOT / "launch.py"
    names = [name for name, _ in imported(ast.parse(launcher.read_text()), "launch")] if launcher.exists() else []
    assert all(name.split(".")[1] in ("app", "__main__") for name in names if name.startswith(f"{PACKAGE}."))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.level", "import threestudio_rf.priors.base"),
        ("core.level", "from threestudio_rf import distill"),
        ("scenes.nerf", "from ..core import level"),
        ("scenes.nerf", "from ..core.level import Level"),
        ("priors.sd3", "def f():\n    from threestudio_rf.scenes.camera import Camera"),
        ("distill.noise", "import importlib\nimportlib.import_module('threestudio_rf.priors.sd3')"),
        ("export.mesh", "from threestudio_rf.priors.base import Prior"),
        ("tiny.train", "from threestudio_rf.trainer import lift"),
        ("trainer.lift", "def f():\n    import diffusers"),
        ("priors.sd3", "import diffusers"),
        ("priors.sd3", "from transformers import CLIPTextModel"),
        ("export.mesh", "import trimesh"),
        ("trainer.lift", "from omegaconf import OmegaConf"),
        ("priors.sd3", "if True:\n    import diffusers"),
        ("distill.noise", "if TYPE_CHECKING:\n    from threestudio_rf.priors.base import Prior"),
    ],
)
def test_a_forbidden_line_is_found(module: str, line: str) -> None:
    assert len(broken(line, f"{PACKAGE}.{module}")) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.solve", "from threestudio_rf.core.level import Level"),
        ("core.solve", "from .level import Level"),
        ("priors.sd3", "def f():\n    from diffusers import AutoencoderKL"),
        ("priors.sd3", "if TYPE_CHECKING:\n    from diffusers import AutoencoderKL"),
        ("trainer.lift", "from threestudio_rf.distill.method import distill"),
        ("app.folder", "from threestudio_rf import __version__"),
        ("app.build", "from threestudio_rf.tiny.world.views import SHAPES"),
    ],
)
def test_an_allowed_line_passes(module: str, line: str) -> None:
    assert broken(line, f"{PACKAGE}.{module}") == []


def test_every_module_imports_without_cuda_and_without_heavy_libraries() -> None:
    names = [dotted(file).removesuffix(".__init__") for file in FILES]
    code = f"""
import importlib, json, sys
for name in {names!r}:
    importlib.import_module(name)
import torch
heavy = {sorted(ONLY_INSIDE_FUNCTIONS)!r}
print(json.dumps([torch.cuda.is_available(), torch.cuda.is_initialized(), [h for h in heavy if h in sys.modules]]))
"""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [False, False, []]
