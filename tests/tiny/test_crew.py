"""Several processes that share the batches of one training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder import architecture, architecture_sd
from threestudio_rf.tiny.train.crew import Crew
from threestudio_rf.tiny.train.denoise import draw_straight
from threestudio_rf.tiny.train.training import Schedule, train
from threestudio_rf.tiny.train.unet import SILENT

SCHEDULE = Schedule(steps=12, lr=0.05, save_seconds=0, log_every=4, ema=0.0, warmup=1e-9, weight_decay=0.0)


class Line:
    """Fit y = 3 x + 1 from noisy batches; `streams` are those of the random numbers, one batch each."""

    name = "line"

    def __init__(self, start: float, streams: tuple[str, ...] = ()) -> None:
        self.modules = nn.ModuleDict({"line": nn.Linear(1, 1)})
        nn.init.constant_(self.modules["line"].weight, start)
        nn.init.constant_(self.modules["line"].bias, start)
        self.streams = streams

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        draws = [generator(0, step, name) for name in self.streams] or [draw]
        x = torch.cat([torch.randn(8, 1, generator=each) for each in draws])
        return (self.modules["line"](x) - 3 * x - 1).square().mean(), {"x": x.mean().item()}


def work(folder: Path, crew: Crew) -> Line:
    """A process starts with a weight of its own and says how it ended."""
    part = Line(start=0.5 + crew.rank)
    for _ in train(part, replace(SCHEDULE, crew=crew), folder, report=lambda _: None):
        pass
    return part


def begin(folder: Path, crew: Crew) -> None:
    work(folder, crew)


def test_two_processes_train_as_one_does_on_both_their_batches(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    shared = work(tmp_path / "two", Crew(2, partial(begin, tmp_path / "two")))
    torch.set_num_threads(threads)
    alone = Line(0.5, streams=("train/line", "train/line/1"))
    for _ in train(alone, SCHEDULE, tmp_path / "one", report=lambda _: None):
        pass
    for name, value in alone.modules.state_dict().items():
        torch.testing.assert_close(shared.modules.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert len((tmp_path / "two/line.csv").read_text().splitlines()) == 4


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused() -> None:
    assert Crew(4, begin).share(64) == 16  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a multiple of 3"):
        Crew(3, begin).share(64)  # type: ignore[arg-type]


def test_shifted_times_of_a_flow_are_nearer_to_the_noise() -> None:
    t = draw_straight(3.0)(20_000, generator(0, 0, "t")).level.sigma
    assert t.mean().item() == pytest.approx(3 * (2 - torch.log(torch.tensor(3.0)).item()) / 4, abs=0.01)
    assert draw_straight()(20_000, generator(0, 0, "t")).level.sigma.mean().item() == pytest.approx(0.5, abs=0.01)


def test_layers_that_a_saved_network_lacks_say_nothing_at_first(tmp_path: Path) -> None:
    sizes = {"channels": (8, 16), "latent_channels": 2, "sample_size": 8, "groups": 4}
    small = architecture_sd.make_unet(8, attention=(False, True), seed=1, **sizes).eval()
    grown = architecture_sd.make_unet(8, attention=(True, True), pooled=True, seed=2, **sizes).eval()
    small.save_pretrained(tmp_path)
    architecture.copy_weights(grown, tmp_path, silent=SILENT)
    given = torch.randn(2, 2, 8, 8), torch.tensor([3.0, 900.0]), torch.randn(2, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(grown(*given).sample, small(*given).sample)
    grown(*given).sample.square().mean().backward()
    assert grown.add_embedding.norm2.weight.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="other weights"):
        architecture.copy_weights(grown, tmp_path)
