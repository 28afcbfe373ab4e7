"""Several runs from one command line: Hydra's sweeps (-m) and files of prompts."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.check.reads import check_named
from threestudio_rf.app.console import open_log
from threestudio_rf.app.errors import FAILED, RunError, UserError, user_text
from threestudio_rf.app.run.places import resolve_paths
from threestudio_rf.app.settings.compose import compose, reason_of, register, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import CONFIGS, Launch


def prompts_of(file: Path) -> list[str]:
    """The prompts of a text file, one per line: BOM, CRLF, blank lines, lines that begin with # and repetitions are
    taken away. UserError as `user_text`."""
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", user_text(file, "prompt_file"))]
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise UserError(f"prompt_file={file}: expected one prompt per line, got none")
    return prompts


def check_sweep(overrides: list[str]) -> None:
    """Raise UserError for a swept value that no run can have, before any run begins. Each value is tried together
    with the first values of the other keys."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, swept = OverridesParser.create(), dict[int, list[str]]()
    for number, item in enumerate(overrides):
        try:
            override = parser.parse_override(item)
            if override.is_discrete_sweep():
                key = override.get_key_element()
                swept[number] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        except (HydraException, ValueError) as error:
            raise UserError(f"{item}: {reason_of(error)}") from None
    first = [swept[number][0] if number in swept else item for number, item in enumerate(overrides)]
    for number, values in swept.items() or {0: first[:1]}.items():
        for value in values:
            config = typed(compose([*first[:number], value, *first[number + 1 :]]))
            resolve_paths(config)
            if config.resume or config.weights:
                raise UserError("a sweep (-m) begins new runs; resume= and weights= are for one run")
            check(config)


def sweep(launch: Launch, run_one: Callable[[Config, int], int], guarded: Callable[[Callable[[], int]], int]) -> int:
    """One run per combination, `run_one(settings, number)`, by the launcher that Hydra is told to use; the worst exit
    code of those that ran in this process. `guarded` turns errors into exit codes."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    codes: list[int] = []

    def job(settings: DictConfig) -> None:
        config = typed(settings)
        resolve_paths(config)
        open_log(config.log_level)
        number = HydraConfig.get().job.num

        def work() -> int:
            check(config)
            check_named(config, launch.named)
            return run_one(config, number)

        codes.append(guarded(work))
        if codes[-1] not in (0, 1, 2):
            raise RunError(f"interrupted in job {number}")

    check_sweep(launch.overrides)
    register()
    before, sys.argv = sys.argv, [sys.argv[0], "--multirun", *launch.overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    except SystemExit as ended:
        return codes[-1] if codes and codes[-1] > 2 else int(ended.code or 0) or FAILED
    finally:
        sys.argv = before
    return max(codes, default=0)
