"""Refuses a setting that is named and would change nothing, and lists those of its kind that are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from threestudio_rf.app.build.method import method_of
from threestudio_rf.app.build.prior import PRIORS, facts_of, wording
from threestudio_rf.app.build.scene import SCENES
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.priors.twin import NAME as TWIN

Keys = tuple[str, ...]
_LIFT: Keys = ("prior.", "scene.", "camera.", "loss.", "optim.", "trainer.", "checkpoint.", "export.", "evaluate.")
_LIFT += ("negative_prompt", "wandb", "viewer", "weights", "prompt_file")
OF_TASK: dict[str, Keys] = {
    **dict.fromkeys(("lift", "evaluate", "export"), _LIFT),
    "sample": ("prior.", "sample.", "negative_prompt", "prompt_file"),
    "edit": ("prior.", "edit.", "prompt_file"),
    "invert": ("prior.", "edit."),
    "train_tiny": ("train_tiny.",),
    "grid": ("grid.",),
    "doctor": ("prior.", "scene.", "camera.", "loss.lambda_orient", "trainer.steps"),
}
"""What each task reads beside the settings of every run; the tasks that look at a result share those of its lift."""
OF_NOISE: dict[str, Keys] = {
    "random": (),
    "rev": ("loss.rev_",),
    "push_back": ("loss.invert_",),
    "inverted": ("loss.invert_",),
    "ism": ("loss.invert_", "loss.ism_"),
    "trace": ("loss.trace_",),
}
OF_LAW: dict[str, Keys] = {"annealed": ("loss.t_width",), "dreamtime": ("loss.t_width", "loss.t_bump")}
OF_ROLE: dict[str, Keys] = {
    "neg": ("loss.neg_prompt",),
    "target": ("loss.target_prompt",),
    "artifact": ("loss.artifact_prompt",),
    TWIN: ("loss.twin_",),
}
MANY = 4
"""Of so many keys of one group a message names each."""
FOUR: Keys = ("prior.front", "prior.back", "prior.overhead", "prior.prompt_")
VIEWED: Keys = ("prior.views", "prior.view_pattern", *FOUR)


@dataclass(frozen=True)
class Rule:
    """Which settings of a kind are read: of those that begin with one of `keys` the ones that begin with one of
    `reads`, or without `reads` all of them, where `when` holds. A message names the settings `by` as the reason."""

    keys: Keys
    by: Keys
    reads: Callable[[Config], Keys] | None = None
    when: Callable[[Config], bool] = lambda config: False

    def read(self, config: Config) -> Keys:
        """Beginnings of the keys that are read."""
        return self.reads(config) if self.reads else self.keys if self.when(config) else ()

    def decider(self, config: Config) -> str:
        """The settings `by` with their values, as a message shows them."""
        values = {key: wording(config.prior) if key == "prior.views" else value_of(config, key) for key in self.by}
        return " ".join(f"{key}={str(value).lower()}" for key, value in values.items())


def _of_views(config: Config) -> Keys:
    """The settings of view words that a task reads, by its scene."""
    if config.task == "sample":
        return ("prior.view_pattern",) if config.sample.view else ()
    if config.task in ("edit", "invert"):
        return ()
    if SCENES[config.scene.name].posed:
        return VIEWED
    return ("prior.view_pattern",) if config.scene.image.view else ()


def _of_wording(config: Config) -> Keys:
    own = FOUR if wording(config.prior) == "four" else ()
    return (*own, "prior.overhead") if config.loss.perp_neg else own


def _of_noise(config: Config) -> Keys:
    return OF_NOISE[config.loss.noise] + OF_NOISE[config.loss.stage_two_noise or config.loss.noise]


def _of_roles(config: Config) -> Keys:
    return sum((OF_ROLE.get(role, ()) for role in method_of(config.loss).roles), ())


def _of_second(config: Config) -> Keys:
    """The settings that the second stage of `refine=true` reads."""
    return sum((row.reads for row in SCENES.values() if row.start is not None), ()) if config.refine else ()


def _sized(config: Config) -> bool:
    return config.task not in ("sample", "edit", "invert") and not SCENES[config.scene.name].latent(config)


_SCENE: Keys = ("scene.", "camera.", "export.", "optim.lr_", "evaluate.size")
_LIT: Keys = tuple(f"scene.shading.{name}" for name in ("diffuse", "textureless", "ambient", "spread", "distance"))
_LIT += ("scene.shading.law", "scene.shading.soft")
_JOINING: Keys = ("scene.encoding.start_step", "scene.encoding.update_steps")
_EDITED: Keys = ("edit.prompts", "edit.keep", "edit.video", "edit.fps")
_SEEN: Keys = ("task", "scene.name")
RULES: tuple[Rule, ...] = (
    Rule(
        tuple(dict.fromkeys(key for keys in OF_TASK.values() for key in keys)),
        ("task",),
        lambda config: OF_TASK[config.task] + (("grid.jobs",) if config.prompt_file else ()),
    ),
    Rule(
        _SCENE,
        ("scene.name",),
        lambda config: ("scene.name", *SCENES[config.scene.name].reads, *_of_second(config)),
    ),
    Rule(
        ("scene.background.rgb",),
        ("scene.background.name",),
        when=lambda config: config.scene.background.name == "solid",
    ),
    Rule(_LIT, ("scene.shading.start",), when=lambda config: config.scene.shading.start is not None),
    Rule(_JOINING, ("scene.encoding.start_level",), when=lambda config: config.scene.encoding.start_level is not None),
    Rule(
        ("loss.lambda_z_variance",),
        ("scene.name",),
        when=lambda config: "z_variance" in SCENES[config.scene.name].maps,
    ),
    Rule(("viewer",), ("scene.name",), when=lambda config: SCENES[config.scene.name].posed),
    Rule(("viewer_port",), ("viewer",), when=lambda config: config.viewer),
    Rule(
        tuple(dict.fromkeys(f"prior.{name}" for row in PRIORS.values() for name in row.facts.reads)),
        ("prior.name",),
        lambda config: tuple(f"prior.{name}" for name in facts_of(config.prior).reads),
    ),
    Rule(("prior.delta_from", "prior.delta_scale"), ("prior.delta",), when=lambda config: bool(config.prior.delta)),
    Rule(VIEWED, _SEEN, _of_views),
    Rule(FOUR, ("prior.views",), _of_wording),
    Rule(("prior.image_size",), _SEEN, when=_sized),
    Rule(("loss.rev_", "loss.invert_", "loss.ism_", "loss.trace_"), ("loss.noise",), _of_noise),
    Rule(("loss.t_width", "loss.t_bump"), ("loss.t_law",), lambda config: OF_LAW.get(config.loss.t_law, ())),
    Rule(sum(OF_ROLE.values(), ()), ("loss.combiner",), _of_roles),
    Rule(("loss.perp_neg_f_",), ("loss.perp_neg",), when=lambda config: config.loss.perp_neg),
    Rule(_EDITED, ("task",), when=lambda config: config.task == "edit"),
    Rule(("edit.fps",), ("edit.video",), when=lambda config: config.edit.video),
    Rule(("sample.log_every",), ("sample.strip",), when=lambda config: config.sample.strip),
)
"""Every rule, the widest first."""


def unread(config: Config) -> dict[str, Rule]:
    """The settings that change nothing beside the others, and the rule that says so."""
    found: dict[str, Rule] = {}
    for rule in RULES:
        reads = rule.read(config)
        found |= {
            key: rule
            for key in leaves()
            if key.startswith(rule.keys) and not key.startswith(reads or ("\0",)) and key not in found
        }
    return found


Named = Iterable[tuple[str, tuple[str, ...]]]
"""What somebody names: `key=value` as spelled, in our words or a peer's, and our keys that it sets."""


def check_named(config: Config, named: Named) -> None:
    """Raise UserError for the first named setting that changes nothing: none of the keys it sets is read."""
    deaf = unread(config)
    for spelled, keys in named:
        settings = [key for key in keys if key in leaves()]
        if not settings or any(key not in deaf for key in settings):
            continue
        key, rule = settings[0], deaf[settings[0]]
        shown, ours = f"{key}={value_of(config, key)}", spelled.lstrip("+").partition("=")[0]
        shown = shown if key == ours or key.endswith(f".{ours}") else f"{spelled} ({shown})"
        reads = [other for other in leaves() if other.startswith(rule.keys) and other not in deaf]
        tail = f"it reads {', '.join(_short(reads))}" if reads else "it reads none of this kind"
        raise UserError(f"{shown}: {rule.decider(config)} does not read it; {tail}")


def _short(keys: list[str]) -> list[str]:
    """The keys, with `group.*` in place of more than `MANY` keys of one group."""
    count = Counter(key.rpartition(".")[0] for key in keys)
    many = {group for group, n in count.items() if group and n > MANY}
    parts = [(key, key.rpartition(".")[0]) for key in keys]
    return list(dict.fromkeys(f"{group}.*" if group in many else key for key, group in parts))
