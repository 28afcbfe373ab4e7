"""The layers of configs/ without Hydra are those that Hydra composes, with the changes of a command line too.

Seen to fail: inner choices winning over outer ones, experiments before presets, a group's settings at the top level; of
two changes of one key the first taken, changes before groups, an interpolation taken literally.
"""

from __future__ import annotations

import threading
from itertools import cycle

import pytest

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import by_hydra, compose, typed
from threestudio_rf.app.settings.flags import choices, groups
from threestudio_rf.app.settings.layers import settings

PAIRS = [
    {"experiment": experiment, "preset": preset}
    for experiment, preset in zip(choices("experiment"), cycle(choices("preset")), strict=False)
]
SINGLE = [{group: name} for group in groups() for name in choices(group) if group != "experiment"]
MIXED = [{"experiment": "rfds_sd3", "prior": "tiny_sd3"}, {"experiment": "tiny", "loss": "vsd", "scene": "image"}]


@pytest.mark.parametrize("choice", [*PAIRS, *SINGLE, *MIXED], ids=lambda c: "+".join(f"{k}={v}" for k, v in c.items()))
def test_the_layers_are_those_of_hydra(choice: dict[str, str]) -> None:
    line = [f"{key}={value}" for key, value in choice.items()]
    assert settings(choice) == typed(by_hydra(line))


@pytest.mark.parametrize(
    "line",
    [
        ["trainer.steps=3", "trainer.steps=7", "experiment=tiny_image", "loss.t_max=[450,0.98,0.7,451]"],
        ["loss.scale=30", "loss=vsd", "prompt='a ${name}, \\'b\\''", "name=x", "scene=image", "preset=cpu"],
        ["++trainer.steps=4", "scene.encoding.start_level=null", "camera.distance=[1,2]"],
        ["trainer={steps:3}", "exp_root_dir=${oc.env:HOME}/out", "tag=1e3", "grid.prompts=[a,'b, c']"],
    ],
)
def test_what_a_command_line_changes_comes_last_as_with_hydra(line: list[str]) -> None:
    made = typed(compose(line))
    assert made == typed(by_hydra(line)) != settings()


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
