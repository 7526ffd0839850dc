"""Every transformer class of diffusers at level stack: docs/measured/transformers.md and what `forecache models` knows.

    python benchmarks/stacks.py [--only CLASS ...]

Walks the transformer classes of the diffusers that is installed, takes the first pipeline of each that can be built
small, and samples with the whole stack as one site (benchmarks/pipelines/stacked.py says what is checked). Writes
benchmarks/results/stacks.json, the table, and src/forecache/models/tested.json, in which a class that is new in
diffusers is missing, so that it shows as untested.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import common
import diffusers
import torch

from forecache.environment import environment
from forecache.models.tested import PATH, UNTESTED, level_of_class

SWEEP = "pipelines"


def rows(names: Iterable[str]) -> Iterable[dict[str, Any]]:
    """A row for each transformer class."""
    from pipelines import build
    from pipelines.cases import CASES
    from pipelines.check import Row, does_not_run
    from pipelines.rows import transformer_of
    from pipelines.stacked import stacked
    from pipelines.walk import pipeline_classes

    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("forecache").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    of_class: dict[str, list[str]] = {}
    for name, kind in pipeline_classes().items():
        of_class.setdefault(transformer_of(kind), []).append(name)
    for transformer in names:
        row = Row("", "default", transformer=transformer)
        row.verdict, row.reason = "not built", "no pipeline of it has a builder"
        for name in of_class.get(transformer, ()):
            case = CASES.get(name)
            if case is None or case.not_built:
                row.reason = case.not_built if case is not None else row.reason
                continue
            gc.collect()
            gc.freeze()
            row = Row(name, "default", transformer=transformer)
            try:
                subject = build.subject(name, case, "default")
            except Exception as error:
                row.verdict, row.reason = "not built", does_not_run(error)
                continue
            stacked(subject, row)
            if row.verdict != "not built":
                break
        yield asdict(row)


def finest(sweep: Mapping[str, Any]) -> dict[str, str]:
    """By class, what the sweep of pipelines found at the finest level: ``right in 6 of 6 rows``."""
    verdicts: dict[str, list[str]] = {}
    for row in sweep.get("rows", ()):
        if row["verdict"] not in ("none", "not built", "no transformer"):
            verdicts.setdefault(row["transformer"], []).append(row["verdict"])
    return {name: f"right in {own.count('right')} of {len(own)} rows" for name, own in verdicts.items()}


def tested(found: Sequence[Mapping[str, Any]], sweep: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What was tested of each class, for `forecache models`."""
    return {
        row["transformer"]: {
            "finest": sweep.get(row["transformer"], UNTESTED),
            "stack": UNTESTED if row["verdict"] == "not built" else row["verdict"],
        }
        for row in found
    }


def table(document: Mapping[str, Any], sweep: Mapping[str, str]) -> list[str]:
    """The table of docs/measured/transformers.md, and the reasons under it."""
    verdicts = [row["verdict"] for row in document["rows"]]
    counts = [f"{verdicts.count(name)} {name}" for name in ("right", "refused", "not built", "WRONG")]
    lines = [
        f"{len(verdicts)} classes at level stack: {', '.join(counts)}.",
        "",
        "| class | known by | finest level, in the sweep of pipelines | stack | its sites | from FORA by blocks |",
        "|---|---|---|---|---|---|",
    ]
    reasons = []
    for row in document["rows"]:
        name, numbers = row["transformer"], row["numbers"]
        far = f"{numbers['from_blocks']:.0e}" if "from_blocks" in numbers else ""
        lines.append(
            f"| `{name}` | {level_of_class(name)} | {sweep.get(name, UNTESTED)} | {row['verdict']} "
            f"| {numbers.get('sites', '')} | {far} |"
        )
        if row["reason"] and row["verdict"] != "right":
            reasons.append(f"- `{name}`, {row['verdict']}: {row['reason'][:300]}")
    return [*lines, "", *reasons, "", f"{common.machine(document['environment'], 'diffusers')}."]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="CLASS", help="these classes, printed and not written")
    args = parser.parse_args(words)
    from pipelines.walk import transformer_classes

    found = []
    for row in rows(args.only or transformer_classes()):
        found.append(row)
        words_of = f"{row['transformer']} ({row['name']}) {row['numbers']} {row['reason'][:200]}"
        print(f"{row['verdict']:10} {words_of}", flush=True)
    if args.only:
        return
    document = {"command": common.command("stacks.py", words), "environment": environment(), "rows": found}
    common.save("stacks", document)
    sweep = finest(common.load(SWEEP))
    classes = {"diffusers": diffusers.__version__, "classes": tested(found, sweep)}
    PATH.write_text(json.dumps(classes, indent=1) + "\n")
    common.fill_page("table stacks", table(document, sweep))


if __name__ == "__main__":
    main(sys.argv[1:])
