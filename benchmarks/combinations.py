"""What users combine with a plan, by branches, by blocks and as a stack: the table of docs/combining.md.

    python benchmarks/combinations.py               all cells (a few minutes of one core)
    python benchmarks/combinations.py --only NAME   some rows, printed and not written

The cases, and what it means that one works, are in benchmarks/pipelines/combined.py; tests/runtime/test_combinations.py
runs the same. Writes benchmarks/results/combinations.json, and the table between the markers in docs/combining.md.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import common

from forecache.environment import environment


def table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells as Markdown, and the sentences of what is refused or untested below."""
    from pipelines.combined import LEVELS

    notes: dict[str, int] = {}
    lines = [f"| with | pipeline | {' | '.join(LEVELS)} |", "|---" * (2 + len(LEVELS)) + "|"]
    for name in dict.fromkeys(cell["combination"] for cell in cells):
        row = {cell["level"]: cell for cell in cells if cell["combination"] == name}
        words = [_words(row[level], notes) for level in LEVELS]
        is_untested = all(cell["verdict"] == "untested" for cell in row.values())
        pipeline = "" if is_untested else f"`{row[LEVELS[0]]['pipeline']}`"
        lines.append(f"| {name} | {pipeline} | {' | '.join(words)} |")
    return [*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())]


def _words(cell: Mapping[str, Any], notes: dict[str, int]) -> str:
    if not cell["reason"]:
        return cell["verdict"]
    return f"{cell['verdict']} ({notes.setdefault(cell['reason'], len(notes) + 1)})"


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="rows, printed and not written")
    args = parser.parse_args(words)
    from diffusers.utils import logging as diffusers_logging
    from pipelines.combined import COMBINATIONS, cells  # loads diffusers

    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    logging.getLogger("forecache").setLevel(logging.ERROR)
    measured = []
    for cell in cells(args.only or tuple(COMBINATIONS)):
        measured.append(cell)
        print(json.dumps(cell), flush=True)
    if args.only:
        return
    about = {"command": common.command("combinations.py", words), "environment": environment()}
    common.save("combinations", about | {"cells": measured})
    common.fill_page("table combinations", table(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
