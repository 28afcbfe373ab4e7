"""The table of threestudio's and the reference's keys in docs/cli.md, made from the tables that the program reads.

    python bench/peer_keys.py [--docs docs/cli.md]

Without --docs it is printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.app.settings.peers import CONVERTED, DEFAULTS, RENAMED
from threestudio_rf.app.settings.unneeded import FIXED, Fixed

BEGIN, END = "<!-- bench/peer_keys.py: begin -->", "<!-- bench/peer_keys.py: end -->"


def shown(value: object) -> str:
    """A value as it stands in a YAML file."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def row_of(fixed: Fixed) -> str:
    """What is done with a key that has nothing to choose."""
    rest = fixed.otherwise or (f"no counterpart; nearest: {fixed.nearest}" if fixed.nearest else "")
    if fixed.allowed is None:
        return rest or "nothing to choose"
    plain = "off" if None in fixed.allowed and False in fixed.allowed else ", ".join(map(shown, fixed.allowed))
    return f"{plain}: nothing to choose; else {rest or 'no counterpart'}"


def table() -> str:
    """All rows."""
    lines = ["| there | here | |", "|---|---|---|"]
    lines += [f"| `{key}` | `{ours}` | |" for key, ours in RENAMED.items()]
    lines += [f"| `{key}` | `{row.ours}` | {row.rule} |" for key, row in CONVERTED.items()]
    lines += [f"| `{key}` | | {row_of(row)} |" for key, row in FIXED.items()]
    said = ", ".join(f"`{key}` {shown(value)}" for key, value in DEFAULTS.items())
    return "\n".join([*lines, "", f"A whole file of theirs (it has a `system.guidance_type`) also means: {said}."])


def put(page: str) -> str:
    """The page with the table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    if options.docs is None:
        print(table())
    else:
        options.docs.write_text(put(options.docs.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
