"""With how many threads a step is taken.

Seen to fail: the number of before not given back; one thread for every prior; the setting ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from threestudio_rf.app.settings.layers import settings
from threestudio_rf.app.tasks.lift import step_threads


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("prior", "scene", "views", "asked", "given", "taken"),
    [
        ("tiny_instaflow", "nerf_tiny", [3], 0, 2, 1),
        ("tiny_instaflow", "nerf_tiny", [4], 0, 2, 2),
        ("tiny_instaflow", "nerf_tiny", [2, 4], 0, 2, 2),
        ("tiny_instaflow", "nerf_tiny", [3], 0, 4, 4),
        ("tiny_instaflow", "image", [8], 0, 2, 1),
        ("gaussian", "image", [1], 0, 2, 2),
        ("tiny_instaflow", "nerf_tiny", [3], 2, 1, 2),
    ],
)
def test_of_two_threads_one_takes_steps_of_few_views_with_an_embedded_prior_unless_another_number_is_asked(
    prior: str, scene: str, views: list[int], asked: int, given: int, taken: int
) -> None:
    steps = {"camera.views": views, "camera.sizes": [64] * len(views), "camera.milestones": [1] * (len(views) - 1)}
    config = settings({"prior": prior, "scene": scene}, {"prompt": "a red ball", "trainer.threads": asked, **steps})
    torch.set_num_threads(given)
    with pytest.raises(KeyboardInterrupt), step_threads(config):
        assert torch.get_num_threads() == taken
        raise KeyboardInterrupt
    assert torch.get_num_threads() == given
