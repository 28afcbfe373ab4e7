"""The sampling path: guidance, samplers by name, what is kept, inversion.

Oracles, whole runs: diffusers' DDPMScheduler with fewer steps (leading and trailing, eps, x0, v, both fixed variances,
clipped), DDIMScheduler clipped and with eta, and with a corrected noise; rescale_noise_cfg. The closed-form mixture
checks inversion.

Seen to fail: the roles in another order; both asked at scale 1; the rescale left out or towards uncond; the corrector
given the prediction, or x0_hat kept; a correction at alpha = 0; what is known not re-noised, not put back, inexact at
the end, or of the level before; the mask turned; x0_hat of the last prediction; a respaced chain with the table's own
betas or end; the next time heard; variance, limit or temperature lost; one generator for the whole batch; an inversion
along falling times; a limit that changes eps_hat; the first state left out of the intermediates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from threestudio_rf.core.convert import KINDS, Kind, noise, split
from threestudio_rf.core.ddpm import DDPM, ancestral_loop, clip
from threestudio_rf.core.guide import perp
from threestudio_rf.core.level import DiscreteVP, betas, column, rectified_flow
from threestudio_rf.core.model import Field, Model
from threestudio_rf.core.random import generator, normal
from threestudio_rf.core.sample import intermediates, invert, keep, states
from threestudio_rf.core.solve import QUIET, STEPS, Rule
from threestudio_rf.core.times import sampling_times, spacing

DOUBLE = torch.float64
STABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
TABLE = DiscreteVP(betas("scaled_linear", 1000), final="first")
STRAIGHT: dict[str, Any] = {"schedule": rectified_flow, "kind": "flow"}
Make = Callable[..., Any]


def gaussian(seed: int = 0, shape: tuple[int, ...] = (3, 2, 4, 5), dtype: torch.dtype = DOUBLE) -> Tensor:
    """Noise; the batch differs from the width."""
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of both."""
    return torch.sin(2 * x) * column(1 + t, x)


def network_of_roles(x: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
    """Another smooth function for each role."""
    return {role: torch.sin((2 + len(role)) * x) * column(1 + t, x) for role in roles}


def end(run: Any) -> Any:
    return list(run)[-1]


@pytest.mark.parametrize(("law", "theirs", "offset"), [("leading", "leading", 1), ("trailing", "trailing", 0)])
@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("variance", "limit"), [("small", None), ("large", None), ("small", clip)])
def test_a_short_ancestral_chain_is_that_of_diffusers(
    kind: Any, law: Any, theirs: str, offset: int, variance: Any, limit: Any
) -> None:
    scheduler = DDPMScheduler(
        **STABLE,
        prediction_type=NAMES[kind],
        steps_offset=offset,
        timestep_spacing=theirs,
        variance_type=f"fixed_{variance}",
        clip_sample=limit is not None,
    )
    scheduler.set_timesteps(7)
    times, x = sampling_times(7, law=law), gaussian(dtype=torch.float32)
    rule = Rule("ddpm", variance=variance, limit=limit)
    run = states(Field(network, kind, TABLE), x, times, rule=rule, generator=generator(0, 0, "z"))
    draws = generator(0, 0, "z")
    for k, state in zip(scheduler.timesteps, run, strict=True):
        result = scheduler.step(network(x, (k + 1).expand(3) / 1000), int(k), x, generator=draws)
        x = result.prev_sample
        if state.left == 0 and variance == "large":
            x = state.x0_hat  # diffusers adds noise to the result where the lowest of the chosen steps is not 0
        assert torch.allclose(state.x, x, rtol=1e-4, atol=2e-4)
        assert torch.allclose(state.x0_hat, result.pred_original_sample, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("limit", [None, clip])
def test_ddim_is_that_of_diffusers_also_clipped(eta: float, limit: Any) -> None:
    scheduler = DDIMScheduler(
        **STABLE, prediction_type="v_prediction", steps_offset=1, set_alpha_to_one=False, clip_sample=limit is not None
    )
    scheduler.set_timesteps(6)
    x, times, rule = gaussian(dtype=torch.float32), sampling_times(6, law="leading"), Rule("ddim", eta, limit=limit)
    run = states(Field(network, "v", TABLE), x, times, rule=rule, generator=generator(0, 0, "z"))
    draws = generator(0, 0, "z")
    for number, (k, state) in enumerate(zip(scheduler.timesteps, run, strict=True), 1):
        result = scheduler.step(network(x, (k + 1).expand(3) / 1000), int(k), x, eta=eta, generator=draws)
        x = result.prev_sample
        assert torch.allclose(state.x, x, atol=1e-4)
        assert torch.allclose(state.x0_hat, result.pred_original_sample, atol=1e-4)
        assert state.left == 6 - number and torch.equal(state.t, times[number].expand(3))


@pytest.mark.parametrize("sampler", STEPS)
def test_a_limit_acts_on_every_prediction(sampler: Any) -> None:
    settings: dict[str, Any] = {"schedule": DiscreteVP(TABLE.betas), "kind": "x0"}
    times, calls = sampling_times(4, law="trailing").double(), []

    def halved(x0_hat: Tensor) -> Tensor:
        calls.append(x0_hat)
        return x0_hat / 2

    def half_network(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t) / 2

    rule, draws = Rule(sampler, limit=halved), generator(0, 0, "z")
    run = list(states(Field(network, **settings), gaussian(), times, rule=rule, generator=draws))
    last = run[-1]
    assert torch.equal(run[0].x0_hat, calls[0] / 2) or sampler == "fireflow", "the first prediction of a step"
    assert len(calls) == {"heun": 7, "midpoint": 8, "fireflow": 5}.get(sampler, 4)
    assert last.x0_hat.abs().max() <= 1 or sampler == "fireflow"
    if sampler == "ddpm":
        draws = generator(0, 0, "z")
        *_, other = states(Field(half_network, **settings), gaussian(), times, rule=Rule("ddpm"), generator=draws)
        assert torch.allclose(last.x, other.x, atol=1e-9), "the posterior mean hears of x0_hat only"
    if sampler not in ("midpoint", "fireflow"):
        assert torch.allclose(last.x, last.x0_hat, atol=1e-9), "the last step ends in the limited x0_hat"


def test_ddim_with_eta_one_and_the_chain_have_the_same_law_when_the_end_is_clean() -> None:
    table, x, times = DiscreteVP(TABLE.betas), gaussian(), sampling_times(9, law="leading").double()
    runs = [
        states(Field(network, "eps", table), x, times, rule=rule, generator=generator(0, 0, "z"))
        for rule in (Rule("ddim", 1.0), Rule("ddpm"))
    ]
    for one, other in zip(*runs, strict=True):
        assert torch.allclose(one.x, other.x, atol=1e-5)


def test_all_steps_are_the_process_itself() -> None:
    table, x = DiscreteVP(betas("linear", 12)), gaussian()
    chain = ancestral_loop(DDPM(table.betas), network, x, kind="v", generator=generator(0, 0, "z"))
    times = sampling_times(12, law="leading", n=12)
    run = states(Field(network, "v", table), x, times, rule=Rule("ddpm"), generator=generator(0, 0, "z"))
    for one, other in zip(run, chain, strict=True):
        assert torch.allclose(one.x, other.x, atol=1e-9) and torch.allclose(one.x0_hat, other.x0_hat, atol=1e-9)


@pytest.mark.parametrize("sampler", ["ddim", *QUIET])
@pytest.mark.parametrize("path", ["straight", "table"])
def test_every_deterministic_sampler_ends_in_the_data_on_every_path(
    sampler: Any, path: str, make_mixture: Make
) -> None:
    mixture = make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.05)
    schedule: Any = rectified_flow if path == "straight" else TABLE
    times = spacing(40) if path == "straight" else sampling_times(40, law="trailing")
    field, x = mixture.field("v", schedule), gaussian(shape=(64, 2))
    last = end(states(Field(field, "v", schedule), x, times, rule=Rule(sampler)))
    assert (last.x[:, None] - mixture.means).norm(dim=-1).min(1).values.max() < 0.4
    assert 10 < (last.x[:, 0] > 0).sum() < 54


@pytest.mark.parametrize(("sampler", "bound"), [("ddim", 0.06), ("heun", 0.01), ("midpoint", 0.01), ("dpmpp_2m", 0.03)])
@pytest.mark.parametrize("path", ["straight", "table"])
def test_inverting_a_sample_finds_its_noise(sampler: Any, bound: float, path: str, make_mixture: Make) -> None:
    straight = path == "straight"
    schedule: Any = rectified_flow if straight else TABLE
    times = (spacing(60, t_start=0.95) if straight else sampling_times(60, law="trailing")[3:]).double()
    kind: Any = "flow" if straight else "eps"
    field = Field(make_mixture([[-1.0, 0.5], [1.0, 0.2]], 0.3).field(kind, schedule), kind, schedule)
    x0 = torch.tensor([[-1.2, 0.5], [0.8, 0.0], [1.1, 0.3]], dtype=DOUBLE)
    up = end(invert(field, x0, times, rule=Rule(sampler)))
    assert torch.equal(up.t, times[:1].expand(3)) and (up.x - x0).abs().max() > 0.3
    back = end(states(field, up.x, times, rule=Rule(sampler)))
    assert (back.x - x0).abs().max() < bound


def test_samplers_with_noise_do_not_invert() -> None:
    for rule in (Rule("ddpm"), Rule("ddim", 0.1)):
        with pytest.raises(ValueError, match="fresh noise"):
            invert(Field(network, **STRAIGHT), gaussian(), spacing(3), rule=rule)


def test_guidance_is_one_call_in_the_order_uncond_cond_and_fewer_roles_where_they_do_not_count() -> None:
    asked: list[tuple[str, ...]] = []

    def predict(x: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        asked.append(tuple(roles))
        return network_of_roles(x, t, roles)

    x, t = gaussian(), torch.full((3,), 0.5, dtype=DOUBLE)
    parts = network_of_roles(x, t, ["cond", "uncond"])
    for scale in (5.0, 1.0, 0.0):
        p = Model(predict, **STRAIGHT).field(scale)(x, t)
        assert torch.allclose(p, parts["uncond"] + scale * (parts["cond"] - parts["uncond"]), atol=1e-12)
    assert asked == [("uncond", "cond"), ("cond",), ("uncond",)]


def test_outside_of_its_interval_guidance_is_the_prompt_alone() -> None:
    """Its counterpart in diffusers' guiders counts steps; here it is a law of t, sample by sample."""
    x, t = gaussian(), torch.tensor([0.2, 0.5, 0.9], dtype=DOUBLE)
    parts, calls = network_of_roles(x, t, ["cond", "uncond", "negative"]), []

    def predict(x: Tensor, t: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        calls.append(tuple(roles))
        return network_of_roles(x, t, roles)

    model, away = Model(predict, **STRAIGHT), {"negative": -0.5}
    for options in ({}, {"negatives": away}):
        found = model.field(6.0, interval=(0.4, 0.6), **options)(x, t)
        plain, guided = (model.field(scale, **options)(x, t) for scale in (1.0, 6.0))
        torch.testing.assert_close(found, torch.stack([plain[0], guided[1], plain[2]]), rtol=0, atol=1e-12)
    calls.clear()
    assert torch.equal(model.field(6.0, interval=(0.0, 0.1))(x, t), parts["cond"])
    assert calls == [("cond",)]


def test_guidance_rescale_is_that_of_diffusers() -> None:
    x, t = gaussian(), torch.full((3,), 0.5, dtype=DOUBLE)
    parts = network_of_roles(x, t, ["cond", "uncond"])
    plain = Model(network_of_roles, **STRAIGHT).field(6.0)(x, t)
    ours = Model(network_of_roles, **STRAIGHT).field(6.0, rescaled=0.7)(x, t)
    assert torch.allclose(ours, rescale_noise_cfg(plain, parts["cond"], guidance_rescale=0.7), atol=1e-12)
    alone = Model(network_of_roles, **STRAIGHT).field(1.0, rescaled=0.7)(x, t)
    assert torch.equal(alone, parts["cond"]), "one role has nothing to rescale to"


def test_a_negative_moves_only_across_the_direction_of_the_prompt() -> None:
    x, t = gaussian(), torch.full((3,), 0.5, dtype=DOUBLE)
    parts = network_of_roles(x, t, ["cond", "uncond", "negative"])
    plain = Model(network_of_roles, **STRAIGHT).field(4.0)(x, t)
    moved = Model(network_of_roles, **STRAIGHT).field(4.0, negatives={"negative": -1.5})(x, t) - plain
    direction, away = (parts[role] - parts["uncond"] for role in ("cond", "negative"))
    assert (moved * direction).sum((1, 2, 3)).abs().max() < 1e-9
    assert torch.allclose(moved, -4 * 1.5 * perp(away, direction), atol=1e-12)


def turned(eps_hat: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """A score corrector that depends on all it is given."""
    return eps_hat + 0.1 * column(t, x) * torch.cos(x)


@pytest.mark.parametrize("kind", NAMES)
def test_a_corrected_run_is_ddim_of_diffusers_with_the_corrected_noise(kind: Any) -> None:
    scheduler = DDIMScheduler(**STABLE, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    scheduler.set_timesteps(5)
    x, times, settings = gaussian(dtype=torch.float32), sampling_times(5, law="leading"), {"schedule": TABLE}
    field = Model(network_of_roles, kind, **settings).field(3.0, corrector=turned)
    plain = Model(network_of_roles, kind, **settings).field(3.0)
    for k, state in zip(scheduler.timesteps, states(field, x, times), strict=True):
        t = (k + 1).expand(3) / 1000
        eps_hat = split(kind, plain(x, t), x, TABLE(t))[1]
        x = scheduler.step(turned(eps_hat, x, t), int(k), x).prev_sample
        assert torch.allclose(state.x, x, rtol=1e-3, atol=1e-3)
        x = state.x


@pytest.mark.parametrize("kind", ["v", "flow"])
def test_a_corrector_changes_the_noise_where_there_is_a_picture_and_nothing_at_pure_noise(kind: Kind) -> None:
    x, t = gaussian(), torch.tensor([1.0, 0.6, 0.2], dtype=DOUBLE)
    level = rectified_flow(t)
    settings: dict[str, Any] = {"schedule": rectified_flow, "kind": kind}
    before = split(kind, Model(network_of_roles, **settings).field(3.0)(x, t), x, level)
    after = split(kind, Model(network_of_roles, **settings).field(3.0, corrector=turned)(x, t), x, level)
    assert torch.allclose(after[1][1:], turned(before[1], x, t)[1:], atol=1e-12)
    assert torch.allclose(noise(*after, level), x, atol=1e-12)
    assert torch.equal(after[0][0], before[0][0]) and torch.equal(after[1][0], before[1][0])


@pytest.mark.parametrize("rule", [Rule("ddim"), Rule("ddim", 1.0), Rule("heun"), Rule("ddpm")], ids=str)
def test_what_is_known_has_the_noise_of_its_level_at_every_step_and_none_at_the_end(rule: Rule) -> None:
    x0, eps = gaussian(1, dtype=torch.float32), gaussian(2, dtype=torch.float32)
    mask = torch.zeros(1, 1, 4, 5)
    mask[..., 1:3, 2:] = 1
    known = (mask == 0).expand_as(x0)
    settings: dict[str, Any] = {"schedule": TABLE, "kind": "v"}
    after, times = keep(x0, eps, mask, schedule=TABLE), sampling_times(6, law="leading")
    run = list(states(Field(network, **settings), eps, times, rule=rule, generator=generator(0, 0, "z"), after=after))
    for state in run[:-1]:
        assert torch.equal(state.x[known], noise(x0, eps, TABLE(state.t))[known])
    assert torch.equal(run[-1].x[known], x0[known]), "exact, though the table's last level keeps noise"
    assert not torch.equal(run[-1].x[~known], x0[~known]) and bool(run[-1].x.isfinite().all())
    plain = end(states(Field(network, **settings), eps, times, rule=rule, generator=generator(0, 0, "z")))
    free = keep(x0, eps, torch.ones(1, 1, 4, 5), schedule=TABLE)
    assert torch.equal(
        end(states(Field(network, **settings), eps, times, rule=rule, generator=generator(0, 0, "z"), after=free)).x,
        plain.x,
    )


def test_the_new_part_follows_the_known_one(make_mixture: Make) -> None:
    mixture = make_mixture([[-1.0, -1.0], [1.0, 1.0]], 0.05)
    eps = gaussian(shape=(32, 2))
    x0 = torch.ones(32, 2, dtype=DOUBLE) * torch.tensor([1.0, -1.0], dtype=DOUBLE).repeat(16)[:, None]
    mask = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return mixture.field("flow", rectified_flow)(x, t)

    rule = Rule("ddim", 1.0)
    after = keep(x0, eps, mask, schedule=rectified_flow)
    last = end(
        states(Field(field, **STRAIGHT), eps, spacing(60), rule=rule, generator=generator(0, 0, "z"), after=after)
    )
    assert ((last.x[:, 0] - x0[:, 0]).abs() < 0.3).double().mean() > 0.85


@pytest.mark.parametrize("shape", [(4, 5), (3, 1, 4, 4), (2, 1, 4, 5), (1, 3, 4, 5)])
def test_a_mask_of_another_shape_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="got a mask of shape"):
        keep(gaussian(), gaussian(), torch.ones(shape), schedule=TABLE)


@pytest.mark.parametrize("rule", [Rule("ddim", 1.0), Rule("ddpm"), Rule("ddpm", noise_dropout=0.3)], ids=str)
def test_a_sample_with_its_own_generator_does_not_depend_on_its_batch(rule: Rule) -> None:
    x, times = gaussian(), sampling_times(5, law="leading").double()
    settings: dict[str, Any] = {"schedule": TABLE, "kind": "eps"}

    def draws(rows: range) -> list[Any]:
        return [generator(0, i, "fresh") for i in rows]

    together = end(states(Field(network, **settings), x, times, rule=rule, generator=draws(range(3)))).x
    for i in range(3):
        alone = end(
            states(Field(network, **settings), x[i : i + 1], times, rule=rule, generator=draws(range(i, i + 1)))
        ).x
        assert torch.allclose(together[i : i + 1], alone, atol=1e-9)
    with pytest.raises(ValueError, match="got 2 generators"):
        end(states(Field(network, **settings), x, times, rule=rule, generator=draws(range(2))))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_temperature_and_shared_noise_change_the_fresh_noise_only(sampler: Any) -> None:
    x, times = gaussian()[:1].repeat(3, 1, 1, 1), sampling_times(5, law="leading").double()
    eta = 1.0 if sampler == "ddim" else 0.0

    def run(generator_: Any = None, **settings: Any) -> Tensor:
        rule = Rule(sampler, eta, **settings)
        draws = generator_ or [generator(0, i, "z") for i in range(3)]
        return end(states(Field(network, "eps", TABLE), x, times, rule=rule, generator=draws)).x

    assert not torch.allclose(run()[0], run()[1])
    shared = run(repeat_noise=True)
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
    assert torch.equal(shared[0], run()[0]), "the first generator draws for all"
    cold = run(temperature=0.0)
    assert torch.equal(cold[0], cold[1]) and torch.equal(cold, run(generator(7, 7, "z"), temperature=0.0))


def test_normal_numbers_of_one_generator_per_sample_are_those_drawn_alone() -> None:
    together = normal((3, 2, 4), [generator(0, i, "z") for i in range(3)])
    assert torch.equal(together, torch.cat([normal((1, 2, 4), generator(0, i, "z")) for i in range(3)]))


def test_intermediates_are_the_first_and_every_so_many_before_the_end() -> None:
    run = states(Field(network, **STRAIGHT), gaussian(), spacing(10))
    assert [state.left for state in intermediates(run, 4)] == [9, 8, 4, 0]
    with pytest.raises(ValueError, match="every"):
        intermediates([], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_can_start_below_pure_noise_with_times_per_sample(kind: Kind) -> None:
    x, times = gaussian(), torch.linspace(1, 0.1, 5, dtype=DOUBLE)[:, None] * torch.tensor([0.9, 0.5, 0.3])
    together = end(states(Field(network, kind, rectified_flow), x, times))
    alone = end(states(Field(network, kind, rectified_flow), x[1:2], times[:, 1]))
    assert torch.allclose(together.x[1:2], alone.x, atol=1e-9) and torch.equal(together.t, times[-1])


def test_what_cannot_work_raises() -> None:
    x, times = gaussian(), spacing(3)

    def chained(times: Tensor) -> Any:
        return end(states(Field(network, "eps", TABLE), x, times, rule=Rule("ddpm"), generator=generator(0, 0, "z")))

    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: Rule("dpm"), "expected one of ddpm"),  # type: ignore[arg-type]
        (lambda: Rule("euler", 0.5), "got eta with sampler euler"),
        (lambda: Rule("ddim", 1.5), "got eta 1.5"),
        (lambda: Rule("ddim", variance="large"), "got variance"),
        (lambda: Rule("ddim", temperature=0.5), "draws no noise"),
        (lambda: Rule("midpoint", repeat_noise=True), "got repeat_noise"),
        (lambda: Rule("euler", noise_dropout=0.5), "got noise_dropout"),
        (lambda: states(Field(network, **STRAIGHT), x, times, rule=Rule("ddpm")), "got no generator"),
        (
            lambda: end(
                states(Field(network, **STRAIGHT), x, times, rule=Rule("ddpm"), generator=generator(0, 0, "z"))
            ),
            "table",
        ),
        (lambda: end(states(Field(network, **STRAIGHT), x, times[:1])), "expected"),
        (lambda: chained(torch.tensor([0.5, 0.5, 0.0])), "falling"),
        (lambda: chained(torch.tensor([0.1, 0.5, 0.9])), "falling"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()
    assert set(STEPS) == {"ddpm", "ddim", "euler", "midpoint", "heun", "fireflow", "dpmpp_2m"}
