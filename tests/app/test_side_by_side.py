"""How many runs go side by side, and on which GPU each.

Seen to fail: auto that ignores GPUs; GPUs that are not those of CUDA_VISIBLE_DEVICES; a number beyond the limit.
"""

from __future__ import annotations

import pytest
import torch

from threestudio_rf.app.errors import UserError
from threestudio_rf.app.run.side_by_side import environment, jobs_of


def test_auto_is_one_run_for_each_gpu_or_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2, 5})
    monkeypatch.setattr("sys.platform", "linux")
    assert (jobs_of("auto"), jobs_of("0"), jobs_of("12")) == (3, 0, 12)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert jobs_of("auto") == 4
    for wrong in ("-1", "65", "many", "2.5"):
        with pytest.raises(UserError, match=r"grid.jobs=.*: expected auto or a number from 0 to 64"):
            jobs_of(wrong)


def test_every_place_has_one_thread_and_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    found = [environment(place, 3) for place in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["3", "7", "3"]
    assert all(one["OMP_NUM_THREADS"] == "1" for one in found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "1" and "CUDA_VISIBLE_DEVICES" not in environment(0, 1)
