"""Which config files of threestudio, of the reference or of somebody else start here, and what stops the others.

    git clone https://github.com/threestudio-project/threestudio && python bench/peer_files.py threestudio/configs
    python bench/peer_files.py FOLDER [--strict] [--keys] [--show]

Every YAML below FOLDER is read as `--config FILE --train system.prompt_processor.prompt="a hat"` would be, up to the
first load. Without --strict with `strict=false`, which leaves out what has no counterpart. --keys lists how each key of
the files is taken: understood, nothing to choose, or refused with the nearest. Prints counts; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import leaves
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.app.settings.peers import CONVERTED, RENAMED
from threestudio_rf.app.settings.unneeded import fixed


def answer(file: Path, strict: bool) -> str:
    """ "" where the file starts, else the one line that says why not."""
    line = ["--config", str(file), "--train", "system.prompt_processor.prompt=a hat"]
    try:
        check(typed(compose(translate([*line, *([] if strict else ["strict=false"])]).overrides)))
    except UserError as error:
        return str(error)
    return ""


def flat(node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a file."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def kind(key: str) -> str:
    """How a key is taken."""
    if key in RENAMED or key in CONVERTED or key in leaves() or key == "tag":
        return "understood"
    found = fixed(key)
    if found is None:
        return "unknown"
    return "refused with the nearest" if found.allowed is None and found.nearest else "nothing to choose"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for flag in ("--strict", "--keys", "--show"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    files = sorted(options.folder.rglob("*.yaml"))
    said = {file: answer(file, options.strict) for file in files}
    stopped = {file: words for file, words in said.items() if words}
    print(f"{len(files)} files: {len(files) - len(stopped)} start, {len(stopped)} say in one message what is missing")
    for file, words in stopped.items() if options.show else ():
        print(f"  {file.relative_to(options.folder)}: {words}")
    if options.keys:
        keys = {key for file in files for key in flat(yaml.safe_load(file.read_text()))}
        print(f"{len(keys)} keys:", dict(Counter(kind(key) for key in sorted(keys))))
        print("unknown:", ", ".join(sorted(key for key in keys if kind(key) == "unknown")) or "none")


if __name__ == "__main__":
    main()
