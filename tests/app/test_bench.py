"""What docs/questions.md says, as laws of the computations behind its figures; and the files bench/real_size.py writes.

Oracles: conditioning of Gaussians, torch's own cross-entropy, the closed forms of a two-mode mixture, safetensors.

Seen to fail: a walk that remembers eps_hat, or later times; one step and many exchanged; the farthest mode for the
nearest; a sign or an argument of v; no slip where the slip is wanted, parentheses left out; a logit told the wrong way,
both sides of a loss exchanged; eq. 13 without either root; clipping where there is none; half the error with the wrong
sign; a list that is not limited; a sign in the closed form of the variance; k ignored; columns of a run exchanged, or
divided by the wrong deviation; offsets of four bytes, fan-in upside down, ones for biases, a file that is not renamed;
in the package, rev_noise with the sign of x0, no limit in p_mean_variance, the sign of x0_hat in split.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from threestudio_rf.core.level import rectified_flow
from threestudio_rf.priors.gaussian import GaussianPrior

BENCH = str(Path(__file__).resolve().parents[2] / "bench")
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def laws():
    sys.path.insert(0, BENCH)
    yield importlib.import_module("questions_laws")
    sys.path.remove(BENCH)


def times(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def test_a_walk_remembers_the_exact_guess_of_every_step_and_ends_at_the_last_one(laws):
    prior = laws.two_modes("flow", rectified_flow, std=0.2)
    start = laws.draw(0, 7, 1, 1, 1)
    path = laws.walk(laws.exact(prior), start, times(1.0, 0.6, 0.3, 0.0))
    assert path.x0_hat.shape == (3, 7, 1, 1, 1) and path.times.tolist() == [1.0, 0.6, 0.3]
    assert torch.allclose(path.x0_hat[0], torch.zeros(1, dtype=DOUBLE), atol=1e-12)  # the mean of the data
    x = 0.6 * start  # x0_hat = 0 leaves only the noise
    var = 0.4**2 * 0.2**2 + 0.6**2
    by_hand = 0.4 * 0.2**2 / var * x + 0.6**2 / var * torch.tanh(0.4 * x / var)
    assert torch.allclose(path.x0_hat[1], by_hand, atol=1e-12)
    assert torch.equal(path.x0_hat[-1], path.sample) and path.error()[-1].max() == 0
    assert torch.allclose(path.error()[0], path.sample.flatten().abs())


def test_one_step_is_nearer_to_the_truth_and_farther_from_the_data_than_many(laws):
    one, many = laws.one_against_many(laws.two_modes("flow", rectified_flow), times(0.4, 0.7, 1.0), draws=2000)
    assert (one.to_truth < many.to_truth).all() and (one.to_data > 2 * many.to_data).all()
    assert one.to_data[-1].item() == pytest.approx(1.0, abs=1e-12)  # pure noise: half way between both modes
    assert one.to_truth[-1].item() == pytest.approx(math.sqrt(1 + 0.1**2), rel=0.01)


def test_the_turn_back_is_exact_on_a_variance_preserving_path_only(laws):
    table = laws.stable().table
    for t in (0.2, 0.9):
        error, wrong = laws.turn(table, t)
        alpha, sigma = (float(value) for value in table(times(t)))
        assert error < 1e-14 and wrong == pytest.approx(sigma * math.sqrt(2 - 2 * alpha), rel=0.03)
    assert laws.turn(rectified_flow, 0.5)[0] > 0.5


def test_the_weights_of_all_kinds_measure_the_same_bound(laws):
    process = laws.stable()
    weights, sigma2 = laws.bound_weights(process), 1 - process.abar
    assert torch.allclose((weights["eps"] / weights["x0"])[1:], (sigma2 / process.abar)[1:], rtol=1e-10)
    assert torch.allclose((weights["v"] / weights["x0"])[1:], sigma2[1:], rtol=1e-10)
    assert weights["eps"][[1, 10, 500, 999]].tolist() == pytest.approx([0.50319, 0.051756, 0.0033491, 0.0061017], 1e-4)
    assert [weights[name][100].item() for name in ("slip", "x0")] == pytest.approx([0.4276, 0.0560], abs=5e-5)
    assert torch.allclose(weights["slip"][1:] * (1 + sigma2)[1:], (2 * laws.with_parentheses(process) * sigma2)[1:])


def test_the_discriminator_curves_are_the_textbooks(laws):
    logits = torch.linspace(-3, 3, 13, dtype=DOUBLE)
    curves = laws.discriminator_curves(logits)
    for real, fake, _ in curves.values():
        assert torch.allclose(fake, real.flip(0), atol=1e-12)
    real, fake, slope = curves["vanilla"]
    for values, label in ((real, torch.ones_like(logits)), (fake, torch.zeros_like(logits))):
        assert torch.allclose(2 * values, F.binary_cross_entropy_with_logits(logits, label, reduction="none"))
    assert torch.allclose(slope, -torch.sigmoid(-logits) / 2)
    assert curves["hinge"][0].tolist() == pytest.approx([max(0.0, 1 - x) / 2 for x in logits.tolist()])
    assert curves["hinge"][2][logits > 1].abs().max() == 0


def test_the_mean_through_eps_is_the_conditional_mean_of_the_previous_picture(laws):
    process = laws.pixels()
    k = torch.tensor([1, 40, 999])
    x0, eps = times(0.3, -0.9, 2.0)[:, None], times(-1.0, 0.4, 0.1)[:, None]
    x_k = process.q_sample(x0, k, eps)
    before, beta = process.abar[k - 1][:, None], process.betas[k][:, None]
    precision = 1 / (1 - before) + (1 - beta) / beta
    expected = (before.sqrt() * x0 / (1 - before) + (1 - beta).sqrt() * x_k / beta) / precision
    assert torch.allclose(laws.mean_through_eps(process, eps, x_k, k), expected, atol=1e-10)
    through = [laws.mean_through_x0(process, eps, x_k, k, clipped=clipped) for clipped in (False, True)]
    assert torch.allclose(through[0], expected, atol=1e-10)
    assert torch.allclose(through[1][:2], expected[:2], atol=1e-10) and not torch.allclose(through[1][2], expected[2])


def test_clipping_moves_the_mean_by_c1_times_what_it_cuts_off(laws):
    process = laws.pixels()
    before = torch.cat([torch.ones(1, dtype=DOUBLE), process.abar[:-1]])
    c1 = before.sqrt() * process.betas / (1 - process.abar)
    plain, cut = laws.mean_gaps(process, x0_hat=-1.8)
    assert plain.max() < 1e-11 and torch.allclose(cut, 0.8 * c1, rtol=1e-6)
    assert laws.mean_gaps(process, x0_hat=0.9)[1].max() < 1e-11


def test_an_error_of_eps_comes_out_of_x0_multiplied_by_sigma_over_alpha(laws):
    process = laws.pixels()
    right, wrong = (laws.clipping(process, 700, error=error, draws=20_000) for error in (0.0, 0.1))
    factor = ((1 - process.abar[700]) / process.abar[700]).sqrt().item()
    assert (wrong.x0_hat - right.x0_hat).std().item() == pytest.approx(0.1 * factor, rel=0.02)
    assert torch.equal(wrong.limited, wrong.x0_hat.clamp(-1, 1)) and wrong.x0_hat.abs().max() > 1
    assert (wrong.limited - wrong.x0).square().mean() < (wrong.x0_hat - wrong.x0).square().mean()


@pytest.mark.parametrize("s", [0.25, 1.0, 3.0])
def test_the_noise_after_rev_has_the_variance_of_the_closed_form(laws, s):
    t = times(0.1, 0.5, 0.9)
    v = (1 - t) ** 2 * s + t**2
    formula = {None: t**2 / v, 1.0: s + (t**2 - (1 - t) ** 2 * s**2) / v}
    for step in (None, 1.0, 0.3):
        closed, measured = laws.rev_variance(t, s, step), laws.rev_measured(t.tolist(), s, step, draws=20_000)
        assert torch.allclose(closed, formula.get(step, closed), rtol=1e-12)
        assert torch.allclose(measured[:, 0], closed, rtol=0.03)
    correlation = laws.rev_measured(t.tolist(), s, None, draws=20_000)[:, 1]
    assert torch.allclose(correlation, (1 - t) * (s / v).sqrt(), atol=0.02)
    assert torch.allclose(laws.rev_variance(t, 1.0, None), times(0.012, 0.5, 0.988), atol=5e-4)


def test_a_run_of_a_prior_measures_its_own_samples(laws):
    prior = GaussianPrior(torch.zeros(1, 3, 16, 16), 1.0)
    run = laws.Run(prior, 1.0, copies=4)
    assert run.path.sample.shape == (12, 3, 16, 16) and run.path.error()[-1].max() == 0
    t = torch.tensor([0.3, 0.7])
    v = (1 - t) ** 2 + t**2
    expected = torch.stack([t**2 / v, t / v.sqrt(), (1 - t) / v.sqrt()], 1)
    assert torch.allclose(run.rev(t), expected, atol=0.03)


def test_figures_are_drawn_from_the_command_line(laws, tmp_path, monkeypatch, capsys):
    questions = importlib.import_module("questions")
    monkeypatch.setattr(sys, "argv", ["questions.py", "--figure", "b", "--out", str(tmp_path)])
    questions.main()
    assert (tmp_path / "question_b_weights.png").read_bytes().startswith(b"\x89PNG")
    assert "b: weight of slip: 0.4987, 0.4929, 0.4276" in capsys.readouterr().out


def test_weights_written_tensor_by_tensor_are_a_whole_safetensors_file(laws, tmp_path):
    folders = importlib.import_module("real_size_folders")
    shapes = {"norm.weight": torch.Size([5]), "a.weight": torch.Size([4, 3, 2]), "a.bias": torch.Size([4])}
    folders.write_weights(tmp_path / "w.safetensors", shapes, folders.drawing(0))
    found, draw = load_file(tmp_path / "w.safetensors"), folders.drawing(0)
    assert {name: value.shape for name, value in found.items()} == shapes and [
        file.name for file in tmp_path.iterdir()
    ] == ["w.safetensors"]
    assert found["norm.weight"].tolist() == [1] * 5 and found["a.bias"].tolist() == [0] * 4
    assert folders.drawing(1)("kernel", torch.Size([50, 40, 3, 3])).std().item() == pytest.approx(360**-0.5, rel=0.02)
    assert torch.equal(found["a.weight"], draw("a.weight", shapes["a.weight"]).bfloat16())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}


def defined(file: Path) -> set[str]:
    """The names that a module has after it was run, read from its text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("script", sorted(Path(BENCH).glob("*.py")), ids=lambda path: path.stem)
def test_every_import_of_a_script_is_there(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    own = [line for line in (ast.get_docstring(tree) or "").splitlines() if "pip install" in line]
    roots = [Path(BENCH), Path(BENCH).parent, Path(BENCH).parent / "tests" / "app"]
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            near = [root.joinpath(*module.split(".")) for root in roots]
            files = [
                path for each in near for path in (each.with_suffix(".py"), each / "__init__.py") if path.is_file()
            ]
            package = module.partition(".")[0]
            assert files or package in " ".join(own) or importlib.util.find_spec(package) is not None, module
            if files and isinstance(node, ast.ImportFrom):
                beside = {path.stem for path in files[0].parent.glob("*")} if files[0].stem == "__init__" else set()
                assert {alias.name for alias in node.names} <= defined(files[0]) | beside, module
