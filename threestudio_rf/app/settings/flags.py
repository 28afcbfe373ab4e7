"""The command line before Hydra sees it: threestudio's flags and keys become ours, bare text is quoted, keys checked.

Hydra's grammar reads `prompt=a scarf, red` as a sweep and an apostrophe as an error; threestudio's parser took both
literally, so the values of text keys are quoted here. The module imports neither torch nor Hydra.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from threestudio_rf.app.errors import UserError, suggestion
from threestudio_rf.app.settings.config import leaves

PACKAGE = Path(__file__).resolve().parents[2]
CONFIGS = next((at for at in (PACKAGE / "configs", PACKAGE.parent / "configs") if at.is_dir()), PACKAGE / "configs")
"""The settings: inside an installed package, beside that of a checkout."""

KEYS = {
    "system.prompt_processor.prompt": "prompt",
    "system.prompt_processor.negative_prompt": "negative_prompt",
    "system.prompt_processor.front_threshold": "prior.front",
    "system.prompt_processor.back_threshold": "prior.back",
    "system.prompt_processor.overhead_threshold": "prior.overhead",
    "system.prompt_processor.use_perp_neg": "loss.perp_neg",
    "system.guidance.guidance_scale": "loss.scale",
    "system.guidance.pretrained_model_name_or_path": "prior.path",
    "system.weights": "weights",
    "init": "weights",
    "system.renderer.num_samples_per_ray": "scene.renderer.samples_per_ray",
    "system.geometry.radius": "scene.radius",
    "system.geometry.isosurface_resolution": "export.resolution",
    "system.geometry.isosurface_threshold": "export.threshold",
    "system.loggers.wandb.enable": "wandb",
    "trainer.max_steps": "trainer.steps",
    "trainer.val_check_interval": "trainer.validate_every",
    "checkpoint.every_n_train_steps": "checkpoint.every",
}
KEYS |= {f"system.loss.lambda_{name}": f"loss.lambda_{name}" for name in ("sparsity", "opaque", "orient", "z_variance")}
KEYS |= {f"system.prompt_processor.perp_neg_f_{name}": f"loss.perp_neg_f_{name}" for name in ("fs", "sf", "fsb", "sb")}
IMAGE_EXPERIMENTS = {"sd3": "2d_rfds_sd3", "sd35": "2d_rfds_sd3"}
IMAGE_EXPERIMENTS |= dict.fromkeys(("sd", "sd21", "instaflow"), "2d_rfds")
IGNORED = ("system.geometry.isosurface_method", "system.exporter_type")
WINDOW = re.compile(r"system\.guidance\.(min|max)_step_percent")
FLAGS = ("--config", "--gpu", "--train", "--validate", "--test", "--export", "--verbose", "--typecheck", "--gradio")
OWN_FLAGS = ("--help", "-h", "--version", "--cfg", "--multirun", "-m")
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)


@dataclass
class Launch:
    """What one command line asks for, in our words."""

    argv: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    stored: str = ""
    gpu: str = ""
    multirun: bool = False
    show: str = ""
    notes: list[str] = field(default_factory=list)


def quote(text: str) -> str:
    """`text` as a quoted string of Hydra's grammar that OmegaConf reads back unchanged."""
    text = re.sub(r"(\\*)\$\{", lambda m: m.group(1) * 2 + "\\${", text)
    text = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", text)
    text = re.sub(r"(\\+)$", lambda m: m.group(1) * 2, text)
    return f"'{text}'"


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def groups() -> list[str]:
    """The config groups."""
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def _text_keys() -> dict[str, bool]:
    """The keys that take free text, and whether they take null."""
    found = {}
    for key, leaf in leaves().items():
        if leaf.type in (str, str | None) and "choices" not in leaf.rule and key not in groups():
            found[key] = leaf.type is not str
    return found


def _check_key(key: str) -> None:
    known = leaves()
    plain = key.split("@", 1)[0]
    if plain == "version":
        raise UserError("version is that of the settings' format, which this program writes; it is not to choose")
    if plain in known or plain in groups() or plain.startswith(("hydra.", "hydra/")):
        return
    if any(name.startswith(plain + ".") for name in known):
        raise UserError(f"{key} is a group of settings; set one of them, for example {_first_below(plain)}=...")
    if WINDOW.fullmatch(plain):
        raise UserError(
            f"{key} is an index into a scheduler's table there; here windows are noise levels: "
            "loss.t_min and loss.t_max, from 0 (clean) to 1 (noise)"
        )
    raise UserError(f"unknown key {key}{suggestion(plain, [*known, *groups(), *KEYS])}")


def _first_below(key: str) -> str:
    return next(name for name in leaves() if name.startswith(key + "."))


SHORT = {"task=sample": "sample", "task=edit": "edit", "task=invert": "edit"}
"""Tasks whose own settings go without their group: with task=sample, `steps=20` is `sample.steps=20`."""


def _short(items: list[str]) -> dict[str, str]:
    """Those settings of the task among `items`, short and in full."""
    group = next((group for task, group in SHORT.items() if task in items), None)
    names = [key.partition(".")[2] for key in leaves() if key.startswith(f"{group}.")]
    return {name: f"{group}.{name}" for name in names if name not in leaves()}


def _override(item: str, short: dict[str, str], *, multirun: bool) -> str | None:
    """One `key=value` in our words, or None when there is nothing to choose."""
    key, equals, value = item.partition("=")
    sign = re.match(r"[+~]*", key).group()  # type: ignore[union-attr]
    key = key[len(sign) :]
    if not equals and not sign:
        raise UserError(f'{item!r} is neither a flag nor key=value; a text is given as prompt="{item}"')
    key = short.get(key) or KEYS.get(key, key)
    if key in IGNORED or key.endswith(".context_type"):
        return None
    _check_key(key)
    if sign.startswith("~"):
        raise UserError(f"{item}: settings can be changed, not removed")
    if key in groups():
        name = Path(value).stem if value.endswith(".yaml") else value
        return f"{key}={name.replace('-', '_')}"
    text = _text_keys()
    if key in text:
        swept = multirun and value[:1] in "'\"" and value[-1:] == value[:1]
        if not (swept or QUOTED.fullmatch(value) or (value == "null" and text[key])):
            value = quote(value)
    return f"{key}={value}"


def _config(value: str, launch: Launch) -> None:
    """`--config PATH`: an experiment of ours by its base name, or the stored settings of a run."""
    path = Path(value)
    name = path.stem.replace("-", "_")
    if name in choices("experiment"):
        launch.overrides.append(f"experiment={name}")
    elif path.is_file():
        launch.stored = value
    else:
        raise UserError(
            f"--config {value}: no such file and no such experiment{suggestion(name, choices('experiment'))}; "
            f"experiments: {', '.join(choices('experiment'))}"
        )


MODES = ("--train", "--validate", "--test", "--export")


def _flag(flag: str, value: str, launch: Launch) -> None:
    if flag == "--config":
        _config(value, launch)
    elif flag == "--gpu":
        launch.gpu = value
    elif flag in MODES:
        other = [item for item in launch.overrides if item.startswith("mode=") and item != f"mode={flag[2:]}"]
        if other:
            raise UserError(f"{flag} and --{other[0].partition('=')[2]}: expected one of {', '.join(MODES)}")
        launch.overrides.append(f"mode={flag[2:]}")
    elif flag == "--verbose":
        launch.overrides.append("log_level=debug")
    elif flag in ("--typecheck", "--gradio"):
        launch.notes.append(f"{flag} has no effect here")
    elif flag in ("-m", "--multirun"):
        launch.multirun = True
    elif flag in ("-h", "--help"):
        launch.show = "help"
    elif flag in ("--version", "--cfg"):
        launch.show = flag[2:]


def translate(argv: list[str]) -> Launch:
    """What the arguments behind `launch.py` ask for. Raises UserError for an unknown flag or key."""
    launch, items, position = Launch(argv=argv), [], 0
    while position < len(argv):
        item = argv[position]
        position += 1
        if not item.startswith("-"):
            items.append(item)
            continue
        flag, equals, value = item.partition("=")
        if flag not in FLAGS + OWN_FLAGS:
            raise UserError(f"unknown flag {flag}{suggestion(flag, FLAGS + OWN_FLAGS)}")
        if flag in ("--config", "--gpu") and not equals:
            if position == len(argv):
                raise UserError(f"{flag} needs a value")
            value, position = argv[position], position + 1
        if flag == "--cfg" and argv[position : position + 1] in (["job"], ["all"]):
            position += 1
        _flag(flag, value, launch)
    short = _short(items)
    done = (_override(item, short, multirun=launch.multirun) for item in items)
    launch.overrides += [item for item in done if item is not None]
    launch.overrides += _implied(launch.overrides)
    return launch


def _implied(overrides: list[str]) -> list[str]:
    """The experiment that scene=image means where none is named, by the prior."""
    chosen = dict(item.split("=", 1) for item in overrides if "=" in item)
    if chosen.get("scene") != "image" or "experiment" in chosen:
        return []
    return [f"experiment={IMAGE_EXPERIMENTS.get(chosen.get('prior', ''), 'tiny_image')}"]
