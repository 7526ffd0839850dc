"""Speed of plans against what their MACs promise: full steps, skipped steps, whole runs, cache.

    python benchmarks/speed.py                          tiny, dit-cpu and digits, one thread (a quarter of an hour)
    python benchmarks/speed.py tiny --rounds 3          one model, fewer rounds

The same as `forecache bench`, for each model. 20 steps, guidance pairs; ratios as in `forecache.bench.speed`.
Writes benchmarks/results/speed-<model>.json with command, hardware and versions, docs/images/speed-<model>.png, and the
tables between the markers in docs/measured/speed.md; with --out, all of it to that folder instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import common
import torch

from forecache.bench import speed
from forecache.bench.subjects import open_subject, preset
from forecache.environment import environment
from forecache.report import figures

MODELS = {"tiny": 1, "dit-cpu": 1, "digits": 16}
"""Images of a call, for the models that a CPU can time."""
PLANS = ("all-computed", "fora-25", "fora-50", "fora-75", "goc-50", "goc-75", "taylor-50", "taylor-75")


def measure(name: str, args: argparse.Namespace) -> tuple[list[speed.PlanSpeed], dict]:
    """The rows of a model, and their document."""
    subject = open_subject(name, 2 * MODELS[name], "cpu")
    grid = subject.grid(args.steps)
    plans = {name: preset(name, args.steps).plan(grid) for name in PLANS}
    rows = speed.measure(subject, plans, rounds=args.rounds, on_run=lambda plan: print(f"{name}: {plan}", flush=True))
    settings = {"command": common.command("speed.py", args.words), "steps": args.steps}
    settings |= {"batch": MODELS[name], "guidance": True, "rounds": args.rounds}
    return rows, speed.document(subject, rows, settings)


def lines(name: str, rows: Sequence[speed.PlanSpeed], document: dict) -> list[str]:
    """The table with its note, in which a run of GOC is compared with one of FORA."""
    by_name = {row.name: row for row in rows}
    model, settings = document["model"], document["settings"]
    goc = by_name["goc-50"].over(by_name["fora-50"])
    note = (
        f"{name}, {settings['steps']} steps, {model['rows']} samples a call, {settings['rounds']} rounds. "
        f"{speed.LEGEND} A run of goc-50 over one of fora-50: {goc.median:.3f} ({goc.low:.3f} to {goc.high:.3f}). "
        f"{common.machine(document['environment'], 'threads', 'diffusers')}."
    )
    picture = common.picture(f"table bench {name}", f"speed-{name}.png", "Time against MACs")
    return [*speed.table(rows), "", note, "", picture]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=f"of {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, default=None, help="a folder for everything that is written")
    args = parser.parse_args(words)
    args.words = list(words)
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"there is no model {unknown.pop()!r}; there are {', '.join(MODELS)}")
    torch.set_num_threads(args.threads)
    for name in args.models:
        rows, document = measure(name, args)
        results, images = (args.out, args.out) if args.out else (common.RESULTS, common.IMAGES)
        results.mkdir(parents=True, exist_ok=True)
        (results / f"speed-{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        figures.draw_speed(rows, images / f"speed-{name}.png", f"{name}, {args.steps} steps, {environment()['cpu']}")
        text = lines(name, rows, document)
        print("\n".join(text))
        if args.out is None:
            common.fill_page(f"table bench {name}", text)
        else:
            (args.out / f"speed-{name}.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
