"""Networks whose field is that of a shortened or sharpened flow, told by what their folder says and by its name."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder.layout import read_json

STEPS = re.compile(r"turbo|schnell|lightning|sprint|hyper|lcm|dmd|flash|\d-?steps?\b", re.IGNORECASE)
FEW = "its field leads from noise to a picture in a few steps, not along the path between them"
GUIDED = "its guidance is built into the field, which has no unconditional part left"
EFFECT = "score distillation compares the field with noise at every level: expect saturated colours and lost shapes"


def warn_distilled(folder: Path, path: str, network: str) -> None:
    """Warn of a distilled network, with the reason why distilling from it fails.

    PriorError for one that is told its guidance scale, or walks on another path: its answers mean something else.
    """
    index = read_json(folder / "model_index.json")
    config = read_json(folder / network / "config.json")
    if config.get("guidance_embeds"):
        raise PriorError(f"{path} is a distilled network that is told its guidance scale: {GUIDED}; use its base model")
    named = [str(source.get("_name_or_path", "")) for source in (index, config)]
    if index.get("is_distilled"):
        _warn(path, "is_distilled in its model_index.json", f"{FEW}; {GUIDED}")
    elif found := next((hit for name in (Path(path).name, *named) if (hit := STEPS.search(name))), None):
        _warn(path, f"{found.group()!r} in its name", FEW)


def _warn(path: str, sign: str, why: str) -> None:
    warnings.warn(f"{path} seems to be distilled ({sign}): {why}. {EFFECT}. Use its base model", stacklevel=4)
