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
    ("prior", "asked", "given", "taken"),
    [("tiny_instaflow", 0, 2, 1), ("tiny_instaflow", 0, 4, 4), ("gaussian", 0, 2, 2), ("tiny_instaflow", 2, 1, 2)],
)
def test_of_two_threads_one_takes_the_steps_with_an_embedded_prior_unless_another_number_is_asked(
    prior: str, asked: int, given: int, taken: int
) -> None:
    config = settings({"prior": prior}, {"prompt": "a red ball", "trainer.threads": asked})
    torch.set_num_threads(given)
    with pytest.raises(KeyboardInterrupt), step_threads(config):
        assert torch.get_num_threads() == taken
        raise KeyboardInterrupt
    assert torch.get_num_threads() == given
