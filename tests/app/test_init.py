"""A finished scene goes on under another prompt: `init=<run>`.

Seen to fail: the scene's settings not taken from the stored run (its grid does not fit the default one); a scene that
is named overwritten by the stored one; `init` unknown on the command line; the step counted on from the stored run.
"""

from __future__ import annotations

import torch

from threestudio_rf.trainer.checkpoint import load


def test_a_finished_scene_goes_on_under_another_prompt_as_it_was_built(small, finished, launcher, tmp_path):
    rest = [item for item in small if not item.startswith("scene.")]
    line = [*rest, "experiment=tiny_edit", "prompt=a blue ball", f"init={finished}", f"exp_root_dir={tmp_path}"]
    code, folder, _, _ = launcher(*line, "trainer.steps=1", "optim.lr_encoding=0", "optim.lr_networks=0")
    assert code == 0 and folder.parent.name == "tiny_edit" and folder.name.startswith("a_blue_ball@")
    loaded, table = load(folder).state, "field.encoding.table"
    assert loaded["step"] == 1
    assert torch.equal(loaded["scene"][table], load(finished).state["scene"][table])


def test_a_scene_that_is_named_must_be_the_stored_one(finished, launcher, tmp_path):
    line = ["prior=gaussian", "prompt=a blue ball", f"init={finished}", f"exp_root_dir={tmp_path}"]
    code, _, _, err = launcher(*line, "scene.radius=0.7")
    assert code == 2 and "scene.radius: 0.6 -> 0.7" in err
