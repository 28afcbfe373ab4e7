"""Every prior of a folder from the command line: a picture, an object, an edit, an inversion, on random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import BUILDERS
from PIL import Image

TASKS = {
    "sample": ["prompt=a red ball", "steps=2", "n=1", "cfg=1"],
    "edit": ["source=a red ball", "prompt=a blue ball", "steps=1"],
    "invert": ["prompt=a red ball", "edit.method=fireflow", "steps=1"],
    "lift": ["scene=image", "prompt=a red ball", "trainer.steps=1", "scene.image.particles=1"],
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_task_runs_on_it(
    kind: str, adapted: Callable[[str], Path], launcher: Any, small: list[str], tmp_path: Path
) -> None:
    folder = adapted(kind)
    picture = tmp_path / "ball.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture)
    line = [f"prior={kind}", f"prior.path={folder}", "prior.size=64", f"prior.cache={folder.parent / 'texts'}"]
    tasks = list(TASKS.items())
    if kind == "prx_pixel":  # what is rendered is its latent
        scene = [item for item in small if not item.startswith(("prior=", "trainer.steps="))]
        tasks += [("lift", [*scene, "prompt=a red ball", "trainer.steps=1", "prior.image_size=64"])]
    for task, given in tasks:
        more = [f"image={picture}"] if task in ("edit", "invert") else []
        code, run, _, err = launcher(f"task={task}", *line, *more, *given, f"exp_root_dir={tmp_path}")
        assert code == 0 and run is not None, err
        assert "Traceback" not in err and list((run / "save").iterdir())


@pytest.mark.parametrize("kind", ["prx", "sana", "prx_pixel"])
def test_the_preset_for_little_memory_leaves_out_what_a_prior_does_not_have(
    kind: str, adapted: Callable[[str], Path], launcher: Any, tmp_path: Path
) -> None:
    """It speaks of SD3's T5, and of the encoder of a VAE."""
    picture = tmp_path / "ball.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(picture)
    line = [f"prior={kind}", f"prior.path={adapted(kind)}", "prior.size=64", "preset=low_vram", f"image={picture}"]
    code, run, _, err = launcher("task=edit", *line, *TASKS["edit"], f"exp_root_dir={tmp_path}")
    assert code == 0 and run is not None and "t5" not in err and "vae_checkpointing" not in err, err
    code, _, _, err = launcher("task=edit", *line, *TASKS["edit"], "prior.t5=false", f"exp_root_dir={tmp_path}")
    assert code == 2 and f"prior.t5=False: prior.name={kind} does not read it" in err
