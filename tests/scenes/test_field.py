"""Density blob, box and normals by closed form.

Seen to fail: blob radius and density exchanged; softplus replaced by relu; the box left out; the sign of the normal;
one tetrahedron corner wrong; the split of the network's output shifted; a level too
many, or one more at the step itself; bands that are forgotten when the scene is stored; densities alone in bfloat16;
density without its scale.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from threestudio_rf.scenes.field import Bands, HashGridField, mlp, normals_by_differences
from threestudio_rf.scenes.hashgrid import HashGrid
from threestudio_rf.scenes.perceptron import PIECE


def field(**changes: float | Bands) -> HashGridField:
    generator = torch.Generator().manual_seed(0)
    grid = HashGrid(levels=3, log2_table=8, base=4, growth=1.5, generator=generator)
    return HashGridField(grid, out_features=6, hidden=8, generator=generator, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_network_that_says_zero_leaves_the_blob_and_grey(scale: float) -> None:
    f = field(radius=1.5, density_scale=scale, blob_density=8.0, blob_radius=0.4)
    nn.init.zeros_(f.network[-1].weight)
    density, rgb = f(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.4, 0.0], [0.6, 0.0, -0.8]]))
    expected = [scale * math.log1p(math.exp(8 * (1 - r / 0.4))) for r in (0.0, 0.4, 1.0)]
    assert density.tolist() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(rgb, torch.full((3, 3), 0.5))


def test_the_raw_output_is_one_density_and_three_colours() -> None:
    class Fixed(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return torch.tensor([[5.0, -1.0, 0.0, 2.0]]).expand(len(features), 4)

    f = field(blob_density=0.0)
    f.network = Fixed()  # type: ignore[assignment]
    density, rgb = f(torch.zeros(2, 3))
    assert density.tolist() == pytest.approx([math.log1p(math.exp(5))] * 2)
    assert torch.allclose(rgb, torch.sigmoid(torch.tensor([-1.0, 0.0, 2.0])).expand(2, 3))


def test_the_density_is_zero_outside_the_box_and_only_there() -> None:
    density = field(radius=0.7).density(torch.tensor([[0.71, 0.0, 0.0], [0.0, 0.0, -0.8], [0.69, 0.69, -0.69]]))
    assert density[:2].tolist() == [0, 0] and density[2] > 0


def test_density_alone_equals_the_density_with_colour() -> None:
    f, points = field(), torch.rand(9, 3) - 0.5
    assert torch.equal(f.density(points), f(points)[0])


def test_a_field_in_bfloat16_keeps_half_for_its_gradient_and_normals_as_they_were() -> None:
    whole, half = field(), field(bf16=True)
    for f in (whole, half):
        nn.init.uniform_(f.network[-1].weight, -1, 1, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(f.encoding.table, -1, 1, generator=torch.Generator().manual_seed(2))  # type: ignore[arg-type]
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    found, kept = [], []
    for f in (whole, half):
        sizes: dict[int, int] = {}

        def note(x: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[x.data_ptr()] = x.numel() * x.element_size() * (x.shape[-1:] == (PIECE,))
            return x

        features = f.encoding((points + 1) / 2).detach()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            f.network(features, torch.bfloat16 if f.bf16 else torch.float32).sum()
        kept.append(sum(sizes.values()))
        density, rgb = f(points)
        (density.sum() + rgb.square().sum()).backward()
        found.append([density, rgb, *(p.grad for p in f.parameters())])
    assert kept[1] == kept[0] / 2 > 0
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and b.dtype == torch.float32
        assert 0 < (a - b).abs().max() < 0.03 * a.abs().max()
    assert torch.equal(whole.density(points), half.density(points))


def test_every_parameter_gets_a_gradient() -> None:
    f = field()
    density, rgb = f(torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5)
    (density.sum() + rgb.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in f.parameters())


def test_normals_of_a_linear_density_are_exact_and_of_a_constant_one_zero() -> None:
    slope, points = torch.tensor([1.0, -2.0, 0.5]), torch.rand(5, 3)
    found = normals_by_differences(lambda x: 3 + x @ slope, points, 0.01)
    assert torch.allclose(found, (-slope / slope.norm()).expand(5, 3), atol=1e-3)
    assert normals_by_differences(lambda x: torch.ones(len(x)), points, 0.01).abs().max() == 0


def test_the_network_is_the_one_of_its_generator() -> None:
    a, b = (mlp(4, 8, 2, 3, torch.Generator().manual_seed(7)) for _ in range(2))
    assert [m.weight.shape for m in a if isinstance(m, nn.Linear)] == [(8, 4), (8, 8), (3, 8)]
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="blob_radius > 0"):
        field(blob_radius=0.0)
    with pytest.raises(ValueError, match="density_scale, blob_radius > 0"):
        field(density_scale=0.0)


@pytest.mark.parametrize(("step", "levels"), [(0, 1), (20, 1), (24, 1), (25, 2), (29, 2), (30, 3), (500, 3)])
def test_levels_join_one_by_one_as_in_threestudios_progressive_grid(step: int, levels: int) -> None:
    start_level, start_step, update_steps, n_level = 1, 20, 5, 3
    assert levels == min(start_level + max(step - start_step, 0) // update_steps, n_level)  # its line
    banded, whole = field(bands=Bands(1, 20, 5, width=2)), field()
    banded.load_state_dict(whole.state_dict())
    banded.update(step)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        for level in whole.encoding.levels[levels:]:  # type: ignore[union-attr]
            whole.encoding.table[:, level.offset : level.offset + level.size] = 0  # type: ignore[index]
    assert torch.allclose(banded.raw(points), whole.raw(points), atol=1e-7)
    banded.raw(points).square().sum().backward()
    gradient = banded.encoding.table.grad  # type: ignore[union-attr]
    used = [bool(gradient[:, one.offset : one.offset + one.size].any()) for one in whole.encoding.levels]  # type: ignore[index,union-attr]
    assert used == [level < levels for level in range(3)]


def test_the_levels_of_a_stored_field_are_those_it_had() -> None:
    early, late = field(bands=Bands(1, 20, 5, width=2)), field(bands=Bands(1, 20, 5, width=2))
    early.update(26)
    late.load_state_dict(early.state_dict())
    assert late.mask.tolist() == [1, 1, 1, 1, 0, 0]
    late.load_state_dict(field().state_dict())
    assert late.mask.tolist() == [1] * 6, "what was stored without bands has all levels"
    field().load_state_dict(early.state_dict())
    with pytest.raises(ValueError, match="bands: got 0, 5, 2"):
        Bands(0, 20, 5, width=2)
