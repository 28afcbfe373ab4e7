"""The layers of configs/ without Hydra are those that Hydra composes.

Seen to fail: inner choices winning over outer ones, experiments before presets, a group's settings at the top level.
"""

from __future__ import annotations

import threading
from itertools import product

import pytest

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.flags import choices, groups
from threestudio_rf.app.settings.layers import settings

PAIRS = [{"experiment": e, "preset": p} for e, p in product(choices("experiment"), ("none", "cpu", "low_vram"))]
SINGLE = [{group: name} for group in groups() for name in choices(group) if group != "experiment"]
MIXED = [{"experiment": "rfds_sd3", "prior": "tiny_sd3"}, {"experiment": "tiny", "loss": "vsd", "scene": "image"}]


@pytest.mark.parametrize("choice", [*PAIRS, *SINGLE, *MIXED], ids=lambda c: "+".join(f"{k}={v}" for k, v in c.items()))
def test_the_layers_are_those_of_hydra(choice: dict[str, str]) -> None:
    assert settings(choice) == typed(compose([f"{key}={value}" for key, value in choice.items()]))


def test_changes_come_last_and_are_checked_by_name_and_type() -> None:
    made = settings({"experiment": "tiny"}, {"trainer.steps": 7, "camera.sizes": [32], "prompt": "a ${x}, 'b'"})
    assert (made.trainer.steps, made.camera.sizes, made.prompt) == (7, [32], "a ${x}, 'b'")
    for choice, changes, text in (
        ({}, {"trainer.stps": 7}, "unknown setting trainer.stps.*trainer.steps"),
        ({}, {"trainer.steps": "many"}, "trainer.steps='many'"),
        ({"prior": "tiny_sd4"}, {}, "prior=tiny_sd4: expected one of"),
        ({"colour": "red"}, {}, "colour=red: expected one of the groups"),
    ):
        with pytest.raises(UserError, match=text):
            settings(choice, changes)


def test_threads_do_not_disturb_each_other() -> None:
    found: dict[int, int] = {}

    def work(steps: int) -> None:
        found[steps] = settings({"experiment": "tiny"}, {"trainer.steps": steps}).trainer.steps

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: i for i in range(1, 9)}
