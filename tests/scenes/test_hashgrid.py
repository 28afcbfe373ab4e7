"""The hash grid against a slow one, written with Python integers and floats in double precision.

Seen to fail: a prime changed; corners in another order; `multipliers` of a dense level transposed; the fraction of one
axis mirrored in `corner_weights` (gradient only) or in `interpolate` (values only); offset of a level dropped;
`clamp_(max=resolution - 1)` removed (upper border of dense levels); + instead of xor; gradient scattered to the wrong
feature; the test call of a kernel with other features than the run's.
"""

from __future__ import annotations

import itertools
import math
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from threestudio_rf.scenes import hashgrid
from threestudio_rf.scenes.hashgrid import HashGrid, encoding_backend, make_encoding
from threestudio_rf.scenes.lattice import look_up, plan


def small(**changes: object) -> HashGrid:
    settings = {"levels": 4, "features": 2, "log2_table": 9, "base": 3, "growth": 2.1} | changes
    return HashGrid(generator=torch.Generator().manual_seed(0), **settings)  # type: ignore[arg-type]


def slow(grid: HashGrid, table: Tensor, points: Tensor, *, log2_table: int, base: int, growth: float) -> Tensor:
    """Instant-NGP's equations (2)-(4) with exact integers; `table` (features, rows)."""
    result = []
    for point in points.tolist():
        offset, features = 0, []
        for level in range(len(grid.levels)):
            resolution = int(base * growth**level)
            dense = (resolution + 1) ** 3 <= 2**log2_table
            size = (resolution + 1) ** 3 if dense else 2**log2_table
            cell = [min(int(x * resolution), resolution - 1) for x in point]
            value = torch.zeros(len(table), dtype=table.dtype)
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (c + k for c, k in zip(cell, corner, strict=True))
                if dense:
                    row = x + (resolution + 1) * (y + (resolution + 1) * z)
                else:
                    row = (x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)) % size
                parts = [x * resolution - c for x, c in zip(point, cell, strict=True)]
                weight = math.prod(p if k else 1 - p for p, k in zip(parts, corner, strict=True))
                value = value + weight * table[:, offset + row]
            features.append(value)
            offset += size
        result.append(torch.cat(features))
    return torch.stack(result)


def slow_tcnn(table: Tensor, points: Tensor, *, levels: int, log2_table: int, base: int, growth: float) -> Tensor:
    """tiny-cuda-nn's grid.h (`grid_scale`, `pos_fract`, `grid_index`) with exact integers; `table` (rows, features)."""
    result = []
    for point in points.tolist():
        offset, features = 0, []
        for level in range(levels):
            scale = base * growth**level - 1
            edge = math.ceil(scale) + 1
            size = min(math.ceil(edge**3 / 8) * 8, 2**log2_table)
            position = [scale * x + 0.5 for x in point]
            value = torch.zeros(table.shape[1], dtype=table.dtype)
            for corner in itertools.product((0, 1), repeat=3):
                x, y, z = (math.floor(p) + k for p, k in zip(position, corner, strict=True))
                index, stride = x + y * edge + z * edge**2, edge**3
                if size < stride:
                    index = x ^ (y * 2654435761 % 2**32) ^ (z * 805459861 % 2**32)
                parts = [p - math.floor(p) for p in position]
                weight = math.prod(p if k else 1 - p for p, k in zip(parts, corner, strict=True))
                value = value + weight * table[offset + index % size]
            features.append(value)
            offset += size
        result.append(torch.cat(features))
    return torch.stack(result)


@pytest.fixture
def points() -> Tensor:
    drawn = torch.rand(37, 3, generator=torch.Generator().manual_seed(1))
    drawn[:3] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.25, 0.0]])
    return drawn


@pytest.mark.parametrize(("features", "log2_table"), [(2, 9), (3, 5)])
def test_values_and_table_gradients_equal_the_slow_grid(points: Tensor, features: int, log2_table: int) -> None:
    grid = small(features=features, log2_table=log2_table)
    torch.nn.init.normal_(grid.table)
    assert {level.dense for level in grid.levels} == ({True, False} if log2_table == 9 else {False})
    direction = torch.randn(37, 4 * features, generator=torch.Generator().manual_seed(2))
    fast = grid(points)
    fast.backward(direction)
    table = grid.table.detach().double().requires_grad_()
    expected = slow(grid, table, points.double(), log2_table=log2_table, base=3, growth=2.1)
    expected.backward(direction.double())
    assert torch.allclose(fast.double(), expected, atol=1e-5)
    assert grid.table.grad is not None and table.grad is not None
    assert torch.allclose(grid.table.grad.double(), table.grad, atol=1e-5)


@pytest.mark.parametrize("log2_table", [12, 9, 5])
def test_the_geometry_tcnn_is_that_of_tiny_cuda_nn(points: Tensor, log2_table: int) -> None:
    sizes = {"levels": 4, "log2_table": log2_table, "base": 3, "growth": 2.25}
    grid = HashGrid(geometry="tcnn", generator=torch.Generator().manual_seed(0), **sizes)  # type: ignore[arg-type]
    torch.nn.init.normal_(grid.table)
    expected = slow_tcnn(grid.table.detach().t().double(), points.double(), **sizes)  # type: ignore[arg-type]
    assert torch.allclose(grid(points).double(), expected, atol=1e-4)


def test_the_table_of_the_geometry_tcnn_has_the_size_that_others_report() -> None:
    instant_ngp = plan(16, 19, 16, (2048 / 16) ** (1 / 15), geometry="tcnn")
    threestudio = plan(16, 19, 16, 1.447269237440378, geometry="tcnn")
    assert [2 * (p[-1].offset + p[-1].size) for p in (instant_ngp, threestudio)] == [12196240, 12599920]


def test_tinycudann_computes_with_the_grids_own_table(monkeypatch: pytest.MonkeyPatch, points: Tensor) -> None:
    class Encoding(torch.nn.Module):
        """What tinycudann offers: flat parameters, row by row, and features in half precision."""

        def __init__(self, n_input_dims: int, encoding_config: dict[str, float]) -> None:
            super().__init__()
            self.params = torch.nn.Parameter(torch.rand(2 * 1976))

        def forward(self, points: Tensor) -> Tensor:
            table = self.params.view(-1, 2)
            return slow_tcnn(table, points, levels=3, log2_table=11, base=3, growth=2.0).half()

    fake = ModuleType("tinycudann")
    fake.Encoding = Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", fake)
    sizes = {"levels": 3, "log2_table": 11, "base": 3, "growth": 2.0, "geometry": "tcnn"}
    foreign, own = (HashGrid(backend=b, **sizes) for b in ("tinycudann", "torch"))  # type: ignore[arg-type]
    torch.nn.init.normal_(own.table)
    foreign.load_state_dict(own.state_dict())
    assert [name for name, _ in foreign.named_parameters()] == ["table"]
    outs = [grid(points) for grid in (foreign, own)]
    for out in outs:
        out.float().sum().backward()
    assert torch.allclose(outs[0].float(), outs[1], atol=1e-2) and outs[1].abs().max() > 0.5
    assert torch.allclose(foreign.table.grad, own.table.grad, atol=0.05)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 3952 numbers, expected"):
        HashGrid(backend="tinycudann", **(sizes | {"levels": 2}))  # type: ignore[arg-type]


@pytest.mark.parametrize("made", ["plain", "tcnn"])
def test_a_stored_grid_opens_in_a_grid_of_either_geometry(points: Tensor, made: str) -> None:
    stored = small(geometry=made)
    torch.nn.init.normal_(stored.table)
    for other in ("plain", "tcnn"):
        opened = small(geometry=other)
        table = opened.table
        opened.load_state_dict(stored.state_dict())
        assert torch.equal(opened(points), stored(points)) and opened.table is table
        assert torch.equal(opened(points.requires_grad_()), stored(points))


def test_a_grid_that_was_stored_before_there_were_geometries_is_plain_or_tinycudanns(points: Tensor) -> None:
    sizes = {"levels": 3, "log2_table": 11, "base": 3, "growth": 2.0}
    plain = HashGrid(**sizes)  # type: ignore[arg-type]
    torch.nn.init.normal_(plain.table)
    opened = HashGrid(geometry="tcnn", **sizes)  # type: ignore[arg-type]
    opened.load_state_dict({"table": plain.table.detach()})
    assert torch.equal(opened(points), plain(points))
    flat = torch.randn(2 * 1976, generator=torch.Generator().manual_seed(5))
    opened.load_state_dict({"params": flat})
    expected = slow_tcnn(flat.double().view(-1, 2), points.double(), **sizes)  # type: ignore[arg-type]
    assert torch.allclose(opened(points).double(), expected, atol=1e-4)


def test_the_differentiable_path_gives_the_same_values_and_table_gradients(points: Tensor) -> None:
    grid = small()
    torch.nn.init.normal_(grid.table)
    fast = torch.autograd.grad(grid(points).sin().sum(), grid.table)[0]
    moving = points.clone().requires_grad_()
    assert torch.allclose(grid(moving), grid(points), atol=1e-6)
    assert torch.allclose(torch.autograd.grad(grid(moving).sin().sum(), grid.table)[0], fast, atol=1e-5)


def test_points_that_ask_for_gradients_get_first_and_second_derivatives() -> None:
    grid = small(levels=2).double()
    torch.nn.init.normal_(grid.table)
    x = (torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)) * 0.9).requires_grad_()
    assert torch.autograd.gradcheck(grid, x, eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(grid, x, eps=1e-7, atol=1e-4)


def test_points_outside_are_clamped_to_the_border() -> None:
    grid = small()
    outside = torch.tensor([[-3.0, 0.5, 2.0], [1.5, -0.1, 0.3]])
    assert torch.equal(grid(outside), grid(outside.clamp(0, 1)))


def test_without_dense_levels_everything_is_hashed() -> None:
    grid = small(dense=False)
    assert [level.size for level in grid.levels] == [512] * 4 and not any(level.dense for level in grid.levels)


def test_many_points_are_the_same_as_few() -> None:
    grid = small(levels=1)
    torch.nn.init.normal_(grid.table)
    points = torch.rand(70_000, 3, generator=torch.Generator().manual_seed(3))
    fast = torch.autograd.grad(grid(points).sin().sum(), grid.table)[0]
    moving = points.requires_grad_()
    assert torch.allclose(grid(moving), grid(points.detach()), atol=1e-6)
    expected = torch.autograd.grad(grid(moving).sin().sum(), grid.table)[0]
    assert torch.allclose(fast, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("geometry", ["plain", "tcnn"])
def test_values_without_a_gradient_are_those_with_one_to_the_bit(points: Tensor, geometry: str) -> None:
    grid, border = small(geometry=geometry), torch.tensor(list(itertools.product((0.0, 0.999, 1.0), repeat=3)))
    assert any(level.beyond for level in grid.levels) == (geometry == "tcnn")
    points = torch.cat((points, border))
    with torch.no_grad():
        found = grid(points)
    assert not found.requires_grad and torch.equal(found, grid(points).detach())
    pieces = look_up(grid.table, points.t().contiguous(), grid.levels, grid.multipliers, piece=7)
    assert torch.equal(pieces.t(), found)


def test_no_points_give_no_features_and_a_zero_gradient() -> None:
    grid = small()
    features = grid(torch.zeros(0, 3))
    assert features.shape == (0, 8)
    features.sum().backward()
    assert grid.table.grad is not None and grid.table.grad.abs().sum() == 0


def test_it_repeats_bit_for_bit(points: Tensor) -> None:
    runs = []
    for _ in range(2):
        grid = small()
        out = grid(points.repeat(50, 1))
        out.square().sum().backward()
        runs.append((out.detach(), grid.table.grad))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])  # type: ignore[arg-type]


def test_the_reference_resolutions_end_at_4096() -> None:
    grid = HashGrid(log2_table=4)
    assert [grid.levels[0].resolution, grid.levels[-1].resolution, grid.out_features] == [16, 4096, 32]


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"growth": 0.5}, {"log2_table": 40}, {"base": 2**19, "growth": 4.0}])
def test_impossible_sizes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        small(**wrong)


def test_a_cpu_uses_torch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashgrid, "INTERPRETED", False)  # tests of kernels may have asked for it
    encoding, reason = make_encoding("auto", levels=2, log2_table=6, base=4, device="cpu")
    assert isinstance(encoding, HashGrid) and "kernels need CUDA and the device is cpu" in reason
    assert "triton needs CUDA" in encoding_backend("triton", "cpu")[1]
    assert encoding_backend("torch", "cuda") == ("torch", "hash grid: torch, as asked for")
    with pytest.raises(ValueError, match="got cuda"):
        encoding_backend("cuda", "cpu")
    with pytest.raises(ValueError, match="got ngp"):
        small(geometry="ngp")


def test_a_broken_tinycudann_falls_back_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("tinycudann")

    def fail(**_: object) -> None:
        raise OSError("CUDA_HOME environment variable is not set.\nPlease set it")

    fake.Encoding = fail  # type: ignore[attr-defined]
    for module, expected in ((None, "ModuleNotFoundError"), (fake, "OSError: CUDA_HOME environment")):
        monkeypatch.setitem(sys.modules, "tinycudann", module)
        name, reason = encoding_backend("tinycudann", "cuda")
        assert name == "torch" and expected in reason and "\n" not in reason


def test_a_triton_that_does_not_compile_or_counts_wrong_is_left_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the kernels where Triton cannot be: what it is given is what a run will ask."""
    asked = []
    kernels = ModuleType("threestudio_rf.scenes.kernels.encode")

    class Lattice:
        sizes = torch.zeros(1)
        of = staticmethod(lambda levels, device: Lattice)

    def broken(table: Tensor, points: Tensor, lattice: object, half: bool) -> Tensor:
        asked.append((len(table), half))
        raise RuntimeError("at 12:8: ptxas fatal\nmore of it")

    def wrong(table: Tensor, points: Tensor, lattice: object, half: bool) -> Tensor:
        return table.sum() + torch.zeros(3 * len(table), len(points))

    kernels.Lattice = Lattice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernels.__name__, kernels)
    monkeypatch.setattr(hashgrid, "INTERPRETED", True)
    monkeypatch.setattr(hashgrid, "unavailable", lambda device: "")
    for fake, expected in ((broken, "triton fails (RuntimeError: at 12:8: ptxas fatal)"), (wrong, "triton differs")):
        kernels.encode = fake  # type: ignore[attr-defined]
        grid, reason = make_encoding("triton", levels=2, features=4, log2_table=6, base=4, half=True, device="cpu")
        assert grid.backend == "torch" and expected in reason and "\n" not in reason
        assert grid(torch.rand(5, 3)).shape == (5, 8)
    assert set(asked) == {(4, True)}


@pytest.mark.gpu
def test_cuda_gives_the_values_and_gradients_of_the_cpu(points: Tensor) -> None:
    results = []
    for device in ("cpu", "cuda"):
        grid = small().to(device)
        out = grid(points.to(device))
        out.square().sum().backward()
        assert grid.table.grad is not None
        results.append((out.detach().cpu(), grid.table.grad.cpu()))
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-5)
