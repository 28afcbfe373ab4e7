"""Two processes on gloo take the steps of one.

Seen to fail: the same rows in both processes; draws of the share instead of the batch; samples in the order of views
before draws; the gradient's sum for its mean; a gradient that one process lacks left out; a NaN of one process skipped
by that process alone; rows of pictures whose gradient does not count for all, or with the draws of other rows, or put
together band by band; regularisers of rows for those of pictures; a process whose rows show nothing that does not wait
for the gradient of the others' views; a twin that learns from its own process alone, or with the numbers of the first.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from looks import LIMITS, LOOKS, TIMES
from torch import Generator, Tensor

from threestudio_rf.core.random import Part, generator, normal
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.base import Condition
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.priors.twin import PoseBias, Twin
from threestudio_rf.scenes.background import EnvironmentBackground
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.scenes.field import HashGridField
from threestudio_rf.scenes.hashgrid import HashGrid
from threestudio_rf.scenes.image import ImageScene
from threestudio_rf.scenes.nerf import HashGridNeRF
from threestudio_rf.trainer.lift import LiftSettings, lift
from threestudio_rf.trainer.optim import make_optimiser
from threestudio_rf.trainer.ramp import Constant
from threestudio_rf.trainer.ranks import ALONE, LostRankError, Ranks, join, leave

CPU = torch.device("cpu")
RATES = {name: Constant(0.01) for name in ("encoding", "networks", "background", "image")}


def nerf() -> Scene:
    g = torch.Generator().manual_seed(0)
    field = HashGridField(HashGrid(levels=3, log2_table=9, base=4, growth=1.6, generator=g), out_features=6, hidden=8)
    for parameter in field.network.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5, generator=g)
    return HashGridNeRF(field, EnvironmentBackground(generator=g), samples_per_ray=12, occupancy_resolution=8)


def pictures() -> Scene:
    return ImageScene((6, 3, 8, 8), "pixels", per_step=4, order="random", generator=torch.Generator().manual_seed(0))


class Blind(Scene):
    """A picture for all cameras whose odd rows are fixed: what the second of two processes renders has no gradient."""

    by_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.picture = torch.nn.Parameter(torch.full((3, 8, 8), 0.4))

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        first, step = camera.band
        rows = [self.picture[:, i].detach() if i % 2 else self.picture[:, i] for i in range(first, 8, step)]
        rgb = torch.stack(rows, dim=1).expand(len(camera), -1, -1, -1)
        return Rendering(rgb, torch.ones_like(rgb[:, :1]))


class Broken(GaussianPrior):
    """Says NaN at its second call, in the second process only."""

    calls = 0

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        bad = self.calls == 2 and os.environ.get("RANK") == "1"
        return super().predict(x_t, t, condition) * (float("nan") if bad else 1.0)


class Scaled(Twin):
    """A twin of a formula: what it learns is a scale and what a pose says, by the twin's own steps."""

    def __init__(self, prior: GaussianPrior, like: Condition) -> None:
        self.prior, self.posed, self.lora = prior, True, {"scale": torch.nn.Parameter(torch.zeros(3, 1, 1))}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.bias = PoseBias(like)
        self.optimiser = torch.optim.AdamW([*self.lora.values(), *self.bias.parameters()], lr=0.01)

    @contextmanager
    def awake(self) -> Iterator[None]:
        yield

    def _answer(self, x_t: Tensor, t: Tensor, condition: Condition, pose: Tensor | None) -> Tensor:
        given = condition.expand(len(x_t))
        assert pose is not None
        said = (self.bias(given, pose).tensors["modes"] - given.tensors["modes"]).sum(1)
        return self.prior.predict(x_t, t, given) + self.lora["scale"] * x_t + said[:, None, None, None]


def lifted(
    make: Callable[[], Scene],
    kind: type[GaussianPrior],
    ranks: Ranks = ALONE,
    views: int = 4,
    size: int = 8,
    twin: bool = False,
) -> dict[str, Any]:
    """What a lift of a few steps ends with."""
    scene = make()
    means = torch.tensor([[0.8, -0.8, -0.8], [-0.8, -0.6, 0.8]])[:, :, None, None].expand(-1, -1, size, size)
    prior = kind(means, 0.1, names=["red", "blue"])
    settings = LiftSettings(
        steps=6,
        method=Method(space="eps", combiner="vsd", scale=4.0) if twin else Method(scale=4.0, noise="rev"),
        rates=RATES,
        views=replace(LOOKS, sizes=[size], counts=[views]),
        times=replace(TIMES, draws=2),
        lambdas={"sparsity": Constant(0.1), "total_variation": Constant(0.1)},
        accumulate=2,
        **LIMITS,
    )
    optimiser = make_optimiser(scene, RATES)
    conditions, negative = prior.embed(["red"] * 4), prior.embed([""])
    learner = Scaled(prior, conditions) if twin else None
    steps = lift(
        scene,
        prior,
        conditions,
        negative=negative,
        optimiser=optimiser,
        settings=settings,
        ranks=ranks,
        twin=learner,
    )
    metrics = [state.metrics for state in steps]
    learnt = {} if learner is None else {"twin.scale": learner.lora["scale"].detach(), **learner.bias.state_dict()}
    return {"metrics": metrics, "scene": scene.state_dict() | learnt}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "nerf": partial(lifted, nerf, GaussianPrior),
    "one view": partial(lifted, nerf, GaussianPrior, views=1),
    "odd rows": partial(lifted, nerf, GaussianPrior, size=9),
    "blind": partial(lifted, Blind, GaussianPrior),
    "pictures": partial(lifted, pictures, GaussianPrior),
    "twin": partial(lifted, pictures, GaussianPrior, twin=True),
    "broken": partial(lifted, nerf, Broken),
}


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = join(os.environ, CPU)
    found: dict[str, Any] = {name: case(ranks=ranks) for name, case in CASES.items()}
    found["any"] = [ranks.any(rank == 1), ranks.any(False)]
    torch.save(found, folder / f"{rank}.pt")
    if rank == 1:
        os._exit(9)
    try:
        ranks.average([torch.nn.Parameter(torch.zeros(2))], {})
    except LostRankError:
        torch.save("lost", folder / "lost.pt")
    leave(ranks)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, processes: Any) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [processes.Process(target=work, args=(rank, port, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", ["nerf", "one view", "odd rows", "blind", "pictures", "twin"])
def test_two_processes_take_the_steps_of_one(found: tuple[Path, list[dict[str, Any]]], case: str) -> None:
    alone, (first, second) = CASES[case](), (ended[case] for ended in found[1])
    assert alone["scene"].keys() == first["scene"].keys()
    for name, value in alone["scene"].items():
        assert torch.equal(first["scene"][name], second["scene"][name])
        torch.testing.assert_close(first["scene"][name], value, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(alone["metrics"], first["metrics"], strict=True):
        assert list(ours) == list(theirs)
        assert all(theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5) for key in ours)
    assert first["metrics"] == second["metrics"]


def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_all(found: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (ended["broken"] for ended in found[1])
    assert [state["skipped"] for state in first["metrics"]].count(1.0) == 1
    assert [s["skipped"] for s in first["metrics"]] == [s["skipped"] for s in second["metrics"]]
    assert all(torch.equal(value, second["scene"][name]) for name, value in first["scene"].items())


def test_what_one_process_is_asked_all_know_and_a_lost_one_is_told(found: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [ended["any"] for ended in found[1]] == [[True, False]] * 2
    assert torch.load(found[0] / "lost.pt") == "lost"


def test_a_part_of_a_batch_gets_what_the_batch_would() -> None:
    whole = normal((6, 2, 3), generator(0, 1, "noise"))
    rows = Ranks(1, 3).rows(2, 2)
    assert rows.tolist() == [1, 4]
    assert torch.equal(normal((2, 2, 3), Part(generator(0, 1, "noise"), rows, 6)), whole[rows])
    with pytest.raises(ValueError, match="got 2 rows"):
        normal((3, 2, 3), Part(generator(0, 1, "noise"), rows, 6))


def test_what_cannot_be_divided_or_met_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 cameras, expected a multiple of 2"):
        sphere_views(3, height=4, width=4).share(0, 2)
    with pytest.raises(ValueError, match="got 5 rows, expected a multiple of 2"):
        sphere_views(1, height=5, width=4).rows(0, 2)
    with pytest.raises(ValueError, match="got no RANK, MASTER_PORT"):
        join({"WORLD_SIZE": "2", "MASTER_ADDR": "here"}, CPU)
    assert join({}, CPU) is ALONE and not ALONE.any(False)
