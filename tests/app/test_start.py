"""The way in: quick help, environment before torch, exit codes, closed pipes, poor consoles.

Mutations seen to fail: `import torch` at the top of flags.py (help without torch), the BrokenPipeError handler removed,
`errors="replace"` left out, UserError given exit code 1.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from threestudio_rf import __version__
from threestudio_rf.app.cli import help as help_module
from threestudio_rf.app.cli.start import prepare, start
from threestudio_rf.app.console import Progress, encodes, safe_streams
from threestudio_rf.app.settings.compose import compose, flat, typed
from threestudio_rf.app.settings.config import leaves
from threestudio_rf.app.settings.files import defaults
from threestudio_rf.app.settings.flags import Launch, translate

LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"


def test_help_is_complete_and_imports_neither_torch_nor_hydra():
    code = (
        "import runpy, sys; sys.argv = ['launch.py', '--help']\n"
        f"try: runpy.run_path({str(LAUNCH)!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)"
    )
    root = LAUNCH.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert done.stderr.strip() == "0 []"
    for key in leaves():
        if key not in ("version", "experiment", "preset"):
            assert f"  {key}=" in done.stdout
    assert done.stdout.count("python launch.py") >= len(help_module.EXAMPLES) == 5
    assert "rfds_rev_sd3" in done.stdout and "low_vram" in done.stdout and "init=PATH" in done.stdout


def test_help_shows_the_values_that_the_default_command_uses():
    used = flat(typed(compose(["prompt=''"])))
    assert {key: value for key, value in defaults().items() if used[key] != value} == {}
    lines = help_module.text()
    assert "  scene.radius=0.6 " in lines and "  export.resolution=96 " in lines and "  trainer.steps=400 " in lines


def test_the_examples_of_the_help_are_understood():
    import shlex

    for command, _ in help_module.EXAMPLES:
        assert translate(shlex.split(command)[2:]).overrides


def test_a_closed_pipe_ends_in_silence():
    line = [sys.executable, str(LAUNCH), "--help"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        reader.stdout.close()
        assert reader.stderr.read() == b""
    assert reader.returncode == 1


def test_the_environment_is_set_and_what_the_user_set_stays():
    environment = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    prepare(Launch(gpu="1"), environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["HF_HUB_DISABLE_TELEMETRY"] == "0" and environment["TRANSFORMERS_VERBOSITY"] == "error"
    prepare(Launch(gpu="0"), environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["promt=a"], "error: unknown key promt; did you mean prompt?"),
        (["trainer.steps=abc", "prompt=a ball"], "error: .*trainer.steps"),
        (["prompt="], "error: the prompt is empty"),
        (["prompt=a ball", "loss.t_min=0.9", "loss.t_max=0.5"], "error: loss.t_min=0.9"),
        (
            ["prompt=a ball", "device=cuda:7"],
            "error: device=cuda:7: this machine shows . CUDA devices; use device=auto",
        ),
        (["prompt=a ball", "resume=nowhere"], "error: resume=nowhere: no such file or folder"),
        (["prompt=a ball", "resume=latest", "exp_root_dir={tmp}"], "error: resume=latest: no run of 'a ball'"),
        (["prompt=a ball", "exp_root_dir={file}"], "error: cannot write to "),
        (["prompt_file={tmp}/nothing.txt"], "error: prompt_file="),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_two(line, message, tmp_path, capfd):
    import re

    (tmp_path / "file").write_text("")
    line = [item.replace("{tmp}", str(tmp_path)).replace("{file}", str(tmp_path / "file")) for item in line]
    assert start(line) == 2
    errors = capfd.readouterr().err
    assert re.match(message, errors) and len(errors.splitlines()) == 1 and "Traceback" not in errors


def test_version_and_settings_are_printed(capsys):
    assert start(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert start(["--cfg", "prompt=it's a ball, red"]) == 0
    assert "prompt: it's a ball, red" in capsys.readouterr().out
    assert start(["--cfg", "system.material.ambient_only_on_test=false", "prompt=a ball"]) == 0
    printed = capsys.readouterr()
    assert yaml.safe_load(printed.out)["prompt"] == "a ball" and "without a light" in printed.err


def test_a_console_that_lacks_characters_replaces_them(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    safe_streams()
    print("a red 蘑菇 ’ 😀", flush=True)
    assert raw.getvalue().decode("ascii") == f"a red ?? ? ?{os.linesep}"


def test_the_bar_is_ascii_where_the_console_is(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    for encoding, plain in (("ascii", True), ("utf-8", False)):
        raw = io.BytesIO()
        terminal = Terminal(raw, encoding=encoding, errors="replace")
        monkeypatch.setattr(sys, "stderr", terminal)
        bar = Progress(4)
        bar.bar.ncols = 60
        for step in range(1, 5):
            bar.update(step, {"loss": "0.1"})
            bar.bar.refresh()
        bar.close()
        terminal.flush()
        shown = raw.getvalue().decode(encoding)
        assert ("#" in shown) == plain and ("█" in shown) != plain


def test_encodes_knows_what_a_stream_can_show():
    assert encodes(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), "█")
    assert not encodes(io.TextIOWrapper(io.BytesIO(), encoding="latin-1"), "█")
