"""Processes of one run must do the same.

Seen to fail: the version left out; a place compared; the difference of a later process not looked at.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from threestudio_rf.app.cli.together import facts, same
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config


def test_processes_with_other_settings_versions_or_checkpoints_are_refused_with_the_key() -> None:
    ours = facts(Config(prompt="a red ball"), 5)
    same([ours, facts(Config(prompt="a red ball", exp_root_dir="/elsewhere"), 5)])
    config = Config(prompt="a red ball", seed=1)
    with pytest.raises(UserError, match=r"seed: process 0 has 0, process 2 has 1"):
        same([ours, ours, facts(config, 5)])
    with pytest.raises(UserError, match=r"checkpoint of step: process 0 has 5, process 1 has None"):
        same([ours, facts(replace(config, seed=0), None)])
    with pytest.raises(UserError, match=r"version: process 0 has \d.*, process 1 has 0\.1"):
        same([ours, ours | {"version": "0.1"}])
