"""Checks of task=edit and task=invert, before any model is loaded."""

from __future__ import annotations

from threestudio_rf.app.build.check.loss import TABLE_ENTRIES
from threestudio_rf.app.build.prior import on_table
from threestudio_rf.app.build.tuned import method_of
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.edit import EditConfig
from threestudio_rf.core.level import DiscreteVP, Schedule, betas, rectified_flow
from threestudio_rf.edit.method import INVERTING, Settings, settled

DEFAULTS = {"edit": "flowedit", "invert": "fireflow"}


def prompts_of(config: Config) -> list[str]:
    """The prompts of an edit: the list `prompts=`, or `prompt=` alone."""
    return config.edit.prompts or [config.prompt]


def name_of(config: Config) -> str:
    """The method's name."""
    return config.edit.method or DEFAULTS[config.task]


def check_edit(config: Config) -> None:
    """UserError for what cannot work: no picture, a method that finds no noise, prompts that ask for nothing, a
    setting that the method or the prior's path does not have."""
    if not config.edit.image:
        raise UserError(f"task={config.task} needs a picture: image=<file or folder>")
    name = name_of(config)
    if config.task == "invert" and name not in INVERTING:
        raise UserError(f"edit.method={name} finds no noise; task=invert has {', '.join(INVERTING)}")
    if config.task == "edit":
        _check_prompts(config)
    fits(method_of(name, config.prior.name, config.edit), config)


def _check_prompts(config: Config) -> None:
    settings: EditConfig = config.edit
    if settings.prompts and (config.prompt or config.prompt_file):
        raise UserError("prompt= and prompts= both say what to make: give only one of them")
    if config.prompt_file and not config.prompt:
        return
    for prompt in prompts_of(config):
        if not prompt.strip() and not config.allow_empty_prompt:
            raise UserError('the prompt is empty; say what the picture should become, for example prompt="a tiger"')
        if prompt.strip() == settings.source.strip():
            raise UserError(f"prompt and source are both {prompt!r}, so nothing is asked for; task=invert reconstructs")


def fits(method: Settings, config: Config) -> None:
    """UserError for a method whose noise levels or shift the path of the prior, as far as its settings tell, lacks."""
    prior = config.prior
    schedule: Schedule = rectified_flow
    if on_table(prior):
        schedule = DiscreteVP(betas("scaled_linear", TABLE_ENTRIES))
    try:
        settled(method, schedule, 1.0)
    except ValueError as error:
        raise UserError(f"edit.method={name_of(config)} does not fit prior {prior.name}: {error}") from None
