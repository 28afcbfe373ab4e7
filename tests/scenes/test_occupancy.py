"""The occupancy grid and marching against loops over rays and cells.

Seen to fail: axes of the cell index exchanged; decay applied to the new value; threshold compared with the density;
`bounds` short by one cell; jitter added twice; `depth` without the erosion (a grazing ray loses what it sees); hidden
samples counted from the ray's own sample; buffers not saved.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes import occupancy
from threestudio_rf.scenes.camera import Camera, sphere_views
from threestudio_rf.scenes.occupancy import OccupancyGrid, box_interval, march, march_nerfacc, marching_backend
from threestudio_rf.scenes.volume import accumulate, packed_weights


def grid(resolution: int = 6, threshold: float = 0.01) -> OccupancyGrid:
    return OccupancyGrid(resolution=resolution, radius=1.5, step=0.1, threshold=threshold)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rays(views: int = 3) -> tuple[Tensor, Tensor]:
    camera: Camera = sphere_views(views, distance=3.0, height=5, width=8)
    origins, directions = camera.rays()
    return origins.reshape(-1, 3), directions.reshape(-1, 3)


def half_space(points: Tensor) -> Tensor:
    """Dense where x > 0.5 and y < 0: no symmetry between the axes."""
    return 50.0 * ((points[:, 0] > 0.5) & (points[:, 1] < 0))


def test_occupied_cells_are_those_with_density() -> None:
    g = grid()
    g.update(half_space, generator())
    cell = torch.stack(torch.meshgrid(*[torch.arange(6)] * 3, indexing="ij"), dim=-1).view(-1, 3)
    centre = (cell + 0.5) * 0.5 - 1.5
    assert torch.equal(g.occupied, half_space(centre) > 0)
    low, high = g.bounds()
    assert low.tolist() == pytest.approx([0.5, -1.5, -1.5]) and high.tolist() == pytest.approx([1.5, 0.0, 1.5])


def test_a_cell_forgets_slowly_and_the_threshold_is_an_opacity() -> None:
    g = grid(resolution=3)
    g.update(lambda x: torch.full((len(x),), 2.0), generator())
    first = 1 - torch.exp(torch.tensor(-0.2))
    assert torch.allclose(g.opacity, first.expand(27))
    g.update(lambda x: torch.zeros(len(x)), generator())
    assert torch.allclose(g.opacity, 0.95 * first.expand(27)) and g.occupied.all()
    for _ in range(60):
        g.update(lambda x: 0.5 * (x[:, 2] > 0.5), generator())
    assert g.occupied.view(3, 3, 3)[..., 2].all() and not g.occupied.view(3, 3, 3)[..., :2].any()


def test_box_intervals_equal_a_fine_walk_along_the_ray() -> None:
    o, d = rays()
    low, high = torch.tensor([-0.5, -0.2, -0.9]), torch.tensor([0.3, 0.6, 0.1])
    near, far = box_interval(o.t(), d.t(), low, high)
    t = torch.linspace(0, 6, 6001)
    inside = ((o[:, None] + t[:, None] * d[:, None] > low) & (o[:, None] + t[:, None] * d[:, None] < high)).all(-1)
    for r in range(len(o)):
        where = t[inside[r]]
        if len(where) < 2:
            assert far[r] - near[r] < 3e-3
        else:
            assert abs(near[r] - where[0]) < 2e-3 and abs(far[r] - where[-1]) < 2e-3


def test_a_ray_along_an_axis_and_a_camera_inside_are_no_special_cases() -> None:
    o = torch.tensor([[-3.0, 0.1, 0.2], [0.0, 0.0, 0.0], [-3.0, 5.0, 0.0]])
    d = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    near, far = box_interval(o.t(), d.t(), torch.full((3,), -1.0), torch.full((3,), 1.0))
    assert near[:2].tolist() == [2, 0] and far[:2].tolist() == [4, 1] and far[2] <= near[2]


@pytest.mark.parametrize("jittered", [False, True])
def test_marching_equals_a_loop_over_rays_and_slots(jittered: bool) -> None:
    g, (o, d), slots = grid(), rays(), 9
    g.update(half_space, generator())
    jitter = torch.rand(len(o), generator=generator(1)) if jittered else None
    samples = march(o, d, g, slots=slots, jitter=jitter, hidden=0)
    near, far = box_interval(o.t(), d.t(), *g.bounds())
    expected = []
    for r in range(len(o)):
        for s in range(slots):
            length = (far[r] - near[r]) / slots
            t = near[r] + (s + (0.5 if jitter is None else jitter[r])) * length
            cell = ((o[r] + t * d[r] + 1.5) / 0.5).floor().long().clamp(0, 5)
            if length > 0 and g.occupied[cell[0] * 36 + cell[1] * 6 + cell[2]]:
                expected.append((r, r * slots + s, float(t), float(length)))
    assert samples.ray.tolist() == [e[0] for e in expected] and samples.cell.tolist() == [e[1] for e in expected]
    assert samples.distance.tolist() == pytest.approx([e[2] for e in expected], abs=1e-5)
    assert samples.length.tolist() == pytest.approx([e[3] for e in expected], abs=1e-5)
    assert torch.allclose(samples.points, o[samples.ray] + samples.distance[:, None] * d[samples.ray], atol=1e-6)
    assert 0 < len(expected) < len(o) * slots and (samples.rays, samples.slots) == (len(o), slots)


def test_dropping_hidden_samples_does_not_change_the_picture() -> None:
    g = OccupancyGrid(resolution=24, radius=1.0, step=0.05, threshold=0.01)

    def shape(x: Tensor) -> Tensor:
        """A ball with a thin ring far behind its edge, which grazing rays must still see."""
        across = x[:, 1:].norm(dim=-1)
        return 60.0 * ((x.norm(dim=-1) < 0.6) | ((x[:, 0] < -0.8) & (across > 0.5) & (across < 0.8)))

    for seed in range(10):
        g.update(shape, generator(seed))
    y, z = torch.meshgrid(torch.linspace(-0.9, 0.9, 50), torch.linspace(-0.9, 0.9, 40), indexing="ij")
    o = torch.stack((torch.full_like(y, 2.0), y, z), dim=-1).view(-1, 3)
    d = torch.tensor([-1.0, 0.0, 0.0]).expand_as(o)
    pictures, counts = [], []
    for hidden in (0.0, 1e-3):
        samples = march(o, d, g, slots=100, hidden=hidden)
        w = packed_weights(shape(samples.points), samples)
        pictures.append(accumulate(torch.stack((w, w * samples.distance)), samples))
        counts.append(len(w))
    assert (pictures[0] - pictures[1]).abs().max() < 5e-3
    assert counts[1] < 0.8 * counts[0]


def test_a_sample_is_hidden_by_what_stands_before_it_and_not_by_itself() -> None:
    g = OccupancyGrid(resolution=4, radius=2.0, step=0.1, threshold=0.01)
    column = [3.0, 2.0, 1.0, 5.0]
    g.depth.view(4, 4, 4)[2, 1] = torch.tensor(column)
    o, d = torch.tensor([[0.5, -0.5, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    for hidden, expected in ((0.06, 1), (0.04, 2), (0.005, 3), (0.002, 4), (0.0, 4)):
        assert len(march(o, d, g, slots=4, hidden=hidden).ray) == expected


def test_the_threshold_holds_where_most_of_space_is_full() -> None:
    g = grid()
    g.update(lambda x: torch.where(x[:, 0] < 1, 50.0, 0.5), generator())
    assert g.opacity.mean() > 0.5 and g.occupied.all()


def test_an_empty_grid_gives_no_samples() -> None:
    g, (o, d) = grid(), rays()
    g.update(lambda x: torch.zeros(len(x)), generator())
    samples = march(o, d, g, slots=4)
    assert samples.points.shape == (0, 3) and len(samples.ray) == 0 and samples.rays == len(o)


def test_a_saved_grid_marches_as_before_and_the_draws_come_from_the_generator() -> None:
    a, b, (o, d) = grid(), grid(), rays()
    a.update(half_space, generator(4))
    b.load_state_dict(a.state_dict())
    assert set(a.state_dict()) == {"opacity", "occupied", "depth"}
    assert torch.equal(march(o, d, a, slots=7).points, march(o, d, b, slots=7).points)
    c, e = grid(), grid()
    c.update(lambda x: x.norm(dim=-1), generator(4))
    e.update(lambda x: x.norm(dim=-1), generator(4))
    assert torch.equal(c.opacity, e.opacity)


def test_marching_on_a_cpu_is_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    name, reason = marching_backend("auto", "cpu")
    assert name == "torch" and "kernels need CUDA" in reason
    assert marching_backend("torch", "cuda") == ("torch", "marching: torch, as asked for")
    with pytest.raises(ValueError, match="got fast"):
        marching_backend("fast", "cpu")


def test_a_broken_nerfacc_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unmoved(OccupancyGrid):
        def to(self, *args: object, **_: object) -> OccupancyGrid:  # type: ignore[override]
            raise OSError("CUDA_HOME environment variable is not set.\nPlease set it")

    monkeypatch.setattr("threestudio_rf.scenes.occupancy.OccupancyGrid", Unmoved)
    name, reason = marching_backend("nerfacc", "cuda")
    assert name == "torch" and "OSError: CUDA_HOME" in reason and "\n" not in reason


def test_a_triton_that_does_not_compile_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(*_: object, **__: object) -> None:
        raise RuntimeError("at 12:8: ptxas fatal\nmore of it")

    kernels = ModuleType("threestudio_rf.scenes.kernels.rays")
    kernels.walk = walk  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(occupancy, "INTERPRETED", True)
    monkeypatch.setattr(occupancy, "unavailable", lambda device: "")
    name, reason = marching_backend("triton", "cpu")
    assert name == "torch" and "triton fails (RuntimeError: at 12:8: ptxas fatal)" in reason and "\n" not in reason


def test_samples_of_nerfacc_are_packed_by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    class Box:
        def __init__(self, **fields: Tensor) -> None:
            self.__dict__.update(fields)

    fake = ModuleType("nerfacc.grid")
    left = torch.tensor([True, True, False, True, False])
    fake.traverse_grids = lambda *_, **__: (  # type: ignore[attr-defined]
        Box(
            vals=torch.tensor([1.0, 1.5, 2.0, 4.0, 4.5]),
            is_left=left,
            is_right=torch.tensor([False, True, True, False, True]),
        ),
        Box(ray_indices=torch.tensor([0, 0, 2])),
        None,
    )
    monkeypatch.setitem(sys.modules, "nerfacc.grid", fake)
    samples = march_nerfacc(torch.zeros(3, 3), torch.eye(3), grid(), slots=64)
    assert samples.ray.tolist() == [0, 0, 2] and samples.cell.tolist() == [0, 1, 4] and samples.slots == 2
    assert samples.distance.tolist() == [1.25, 1.75, 4.25] and samples.length.tolist() == [0.5, 0.5, 0.5]
    assert samples.points.tolist() == [[1.25, 0, 0], [1.75, 0, 0], [0, 0, 4.25]]


@pytest.mark.gpu
def test_nerfacc_sees_the_same_picture_as_torch() -> None:
    name, reason = marching_backend("auto", "cuda")
    if name == "torch":
        pytest.skip(reason)
    g = OccupancyGrid(resolution=16, radius=1.0, step=0.02, threshold=0.01).cuda()
    g.update(lambda x: 20.0 * (x.norm(dim=-1) < 0.5), generator())
    o, d = (x.cuda() for x in rays())
    found = []
    for samples in (march(o, d, g, slots=200), march_nerfacc(o, d, g, slots=200)):
        w = packed_weights(20.0 * (samples.points.norm(dim=-1) < 0.5), samples)
        found.append(accumulate(w[None], samples))
    assert (found[0] - found[1]).abs().mean() < 0.02
