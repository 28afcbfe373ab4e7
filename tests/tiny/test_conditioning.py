"""Laws of the conditioning kinds, and that each one uses its condition.

Seen to fail: condition before x in the joined channels; only the first list of tokens read; lists joined in reverse;
map, tokens or vector times 0; t spread over 0..1 (the picture itself tells too much); the mask of the toys one row off;
colours of another variance; superfluous or missing entries accepted; a map of another size, tokens of another width, an
unknown kind, a network with other inputs accepted; the wrong conditions of the held-out error left as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from threestudio_rf.core.random import generator
from threestudio_rf.priors.folder.architecture_sd import make_unet
from threestudio_rf.tiny.train.conditioning import (
    KINDS,
    Condition,
    Conditioned,
    ConditionedPart,
    draw_toys,
    held_out_errors,
    make_conditioned,
)
from threestudio_rf.tiny.train.training import Schedule, train

LABEL = torch.tensor([900.0, 950.0])
SCHEDULE = Schedule(steps=80, lr=1e-2, warmup=0.2, ema=0.9, log_every=1000)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Kernels this small gain nothing from a second thread and wait for it where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some(kind: str, seed: int = 0) -> tuple[Tensor, Condition]:
    """Two noisy pictures with a condition."""
    return draw_toys(kind)(2, generator(seed, 0, "toys"))


def held_out(kind: str, folder: Path) -> tuple[float, float]:
    part = ConditionedPart(make_conditioned(kind), draw_toys(kind), batch=8)
    for _ in train(part, SCHEDULE, folder, report=lambda _: None):
        pass
    return held_out_errors(part, 256, 1_000_000)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The held-out error of a network that is told nothing."""
    right, wrong = held_out("none", tmp_path_factory.mktemp("none"))
    assert right == wrong
    return right


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_a_trained_network_uses_its_condition(kind: str, blind: float, tmp_path: Path) -> None:
    right, wrong = held_out(kind, tmp_path)
    assert right < 0.75 * blind and right < 0.65 * wrong, (right, wrong, blind)
    if kind == "hybrid":  # told everything
        assert right < 0.4 * blind


def test_told_nothing_a_network_knows_little_more_than_the_mean_picture(blind: float) -> None:
    assert 0.85 * 3 / 8 < blind < 1.05 * 3 / 8


def test_a_toy_is_its_colour_plus_its_square_and_both_vary_as_much() -> None:
    x0, condition = draw_toys("hybrid")(20_000, generator(0, 0, "toys"))
    colour = torch.cat(list(condition["crossattn"]), dim=1).sum(1) / 4
    square = condition["concat"]
    assert torch.allclose(x0, colour[:, :, None, None] + square)
    assert colour.var() == pytest.approx(3 / 16, rel=0.02) and square.var() == pytest.approx(3 / 16, rel=0.02)
    assert torch.equal(draw_toys("adm")(20_000, generator(0, 0, "toys"))[1]["adm"], colour)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_called_as_latent_diffusion_calls_it(kind: str) -> None:
    x, condition = some(kind)
    model = make_conditioned(kind)
    joined = torch.cat([x, condition["concat"]], dim=1) if "concat" in condition else x
    tokens = torch.cat([*condition["crossattn"]], dim=1) if "crossattn" in condition else None
    wanted = model.network(
        sample=joined, timestep=LABEL, encoder_hidden_states=tokens, class_labels=condition.get("adm")
    )
    assert torch.equal(model(x, LABEL, condition), wanted.sample)
    assert model(x, LABEL, condition).shape == x.shape


def test_tokens_are_a_set_that_may_come_in_several_lists() -> None:
    x, condition = some("crossattn")
    model = make_conditioned("crossattn")
    first, second = condition["crossattn"]
    once = model(x, LABEL, {"crossattn": [torch.cat([first, second], dim=1)]})
    assert torch.equal(model(x, LABEL, condition), once)
    assert torch.allclose(model(x, LABEL, {"crossattn": [second, first]}), once, atol=1e-5)
    assert not torch.allclose(model(x, LABEL, {"crossattn": [first]}), once, atol=1e-3)


def test_cross_attention_is_softmax_of_q_k_over_the_root_of_the_head_width() -> None:
    attention = make_conditioned("crossattn").network.mid_block.attentions[0].transformer_blocks[0].attn2
    draw = generator(0, 0, "attention")
    x, tokens = torch.randn(2, 5, 16, generator=draw), torch.randn(2, 7, 3, generator=draw)
    heads, width = attention.heads, 16 // attention.heads
    assert attention.scale == width**-0.5
    q, k, v = attention.to_q(x), attention.to_k(tokens), attention.to_v(tokens)
    wanted = torch.zeros(2, 5, 16)
    for b in range(2):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = q[b, :, part] @ k[b, :, part].T / width**0.5
            wanted[b, :, part] = scores.exp() / scores.exp().sum(1, keepdim=True) @ v[b, :, part]
    out = attention(x, encoder_hidden_states=tokens)
    assert torch.allclose(out, attention.to_out[0](wanted), atol=1e-6)


def test_unknown_kinds_are_refused() -> None:
    for call in (make_conditioned, draw_toys, lambda kind: Conditioned(make_conditioned("none").network, kind)):
        with pytest.raises(ValueError, match="'film', expected one of none, concat, crossattn, hybrid, adm"):
            call("film")


WRONG: list[tuple[str, dict[str, object], str]] = [
    ("none", {"adm": torch.zeros(2, 3)}, r"\['adm'\], expected \[\]"),
    ("concat", {}, r"\[\], expected \['concat'\]"),
    ("hybrid", {"concat": torch.zeros(2, 1, 8, 8)}, r"expected \['concat', 'crossattn'\]"),
    ("concat", {"concat": torch.zeros(2, 1, 4, 4)}, r"\(2, 1, 4, 4\), expected \(2, 1, 8, 8\)"),
    ("concat", {"concat": torch.zeros(2, 2, 8, 8)}, r"\(2, 2, 8, 8\), expected \(2, 1, 8, 8\)"),
    ("concat", {"concat": torch.zeros(1, 1, 8, 8)}, r"\(1, 1, 8, 8\), expected \(2, 1, 8, 8\)"),
    ("crossattn", {"crossattn": torch.zeros(2, 3, 3)}, "got a tensor, expected a list"),
    ("crossattn", {"crossattn": []}, "got no tokens"),
    ("crossattn", {"crossattn": [torch.zeros(2, 1, 3), torch.zeros(2, 1, 4)]}, r"\(2, 1, 4\), expected \(2, n, 3\)"),
    ("crossattn", {"crossattn": [torch.zeros(1, 1, 3)]}, r"\(1, 1, 3\), expected \(2, n, 3\)"),
    ("adm", {"adm": torch.zeros(2, 4)}, r"\(2, 4\), expected \(2, 3\)"),
    ("adm", {"adm": [torch.zeros(2, 3)]}, r"list, expected \(2, 3\)"),
]


@pytest.mark.parametrize(("kind", "condition", "message"), WRONG)
def test_a_condition_that_does_not_fit_is_refused(kind: str, condition: Condition, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_conditioned(kind)(torch.zeros(2, 3, 8, 8), LABEL, condition)


def test_a_network_with_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads \['crossattn'\], expected \['concat'\]"):
        Conditioned(make_conditioned("crossattn").network, "concat")
    with pytest.raises(ValueError, match=r"reads \[\], expected \['adm'\]"):
        Conditioned(make_conditioned("none").network, "adm")
    with pytest.raises(ValueError, match="expected only False without a text width"):
        make_unet(None)
