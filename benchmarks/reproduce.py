"""The papers' tables on the bundled models, row by row, beside the published figures.

    python benchmarks/reproduce.py                                      an hour and a half on one core; it continues
    python benchmarks/reproduce.py --tables goc-table-2 --samples 1000  one of them, with more samples

The same as `forecache reproduce goc-table-2 --on digits --samples 320` and so on; a row that stands in several tables
is sampled once. Tables of classes run on digits, tables of prompts on digits-text. Writes
benchmarks/results/reproduce-<table>-<model>.json with command, hardware and versions, docs/images/reproduce.png, and
the tables of docs/measured/papers.md.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import common

from forecache.evaluate import difference
from forecache.evaluate.estimates import Z
from forecache.report import figures as figures_module
from forecache.reproduce.latency import base_of
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.result import Reproduction
from forecache.reproduce.table import Table, open_table
from forecache.reproduce.testbed import TestbedOptions, open_testbed
from forecache.reproduce.worker import Protocol

TABLES = {
    "goc-table-1": "digits",
    "goc-table-2": "digits",
    "goc-table-3": "digits",
    "goc-table-4": "digits-text",
    "goc-table-5": "digits",
    "procache-dit": "digits",
    "procache-ablation": "digits",
    "procache-pixart": "digits-text",
}
"""The model that a table is measured on."""

DRAWN = "goc-table-3"
"""The table of the picture."""


def folder_of(table: str, samples: int) -> Path:
    """The folder of a reproduction, which goes on after an interruption."""
    return common.WORK / f"reproduce/{table}-{TABLES[table]}-{samples}"


def take_samples(table: Table, samples: int) -> None:
    """Copy the samples of rows that another table has finished under the same plan; settings are checked again."""
    for name, on in TABLES.items():
        other = open_table(name)
        same = (on, other.steps, other.conditions) == (TABLES[table.name], table.steps, table.conditions)
        if name == table.name or not same:
            continue
        for row in other.rows:
            finished = folder_of(name, samples) / "samples" / row.slug
            for own in (own for own in table.rows if own.recipe == row.recipe and not (own.absent or row.absent)):
                place = folder_of(table.name, samples) / "samples" / own.slug
                if (finished / "run.json").exists() and not place.exists():
                    shutil.copytree(finished, place)


def gains(result: Reproduction) -> str:
    """FID and PSNR of each correction, minus those of its base; empty for a table without both."""
    texts = []
    for row in result.table.rows:
        base = base_of(result.table, row)
        if base is None or not {row.name, base.name} <= result.measured.keys():
            continue
        of, other = result.measured[row.name]["figures"], result.measured[base.name]["figures"]
        differences = {key: difference(of[key], other[key]) for key in ("fid", "psnr")}
        cells = [f"{change.value:+.2f} ± {Z * (change.error or 0):.2f}" for change in differences.values()]
        texts.append(f"{row.name}: FID {cells[0]}, PSNR {cells[1]} dB")
    return f"Minus its base: {'; '.join(texts)}." if texts else ""


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=320, help="samples of a row")
    parser.add_argument("--bootstrap", type=int, default=100, help="resamples of a row")
    parser.add_argument("--metrics", help="metrics, with commas between them [the table's]")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES), help="tables to measure")
    args = parser.parse_args(words)
    for name in args.tables:
        table, on = open_table(name), TABLES[name]
        take_samples(table, args.samples)
        result = reproduce(
            table,
            open_testbed(table, on, TestbedOptions(metrics=args.metrics), "cpu"),
            folder_of(name, args.samples),
            Protocol(samples=args.samples, resamples=args.bootstrap),
            command=" ".join(
                [
                    f"forecache reproduce {name} --on {on} --samples {args.samples} --bootstrap {args.bootstrap}",
                    *([f"--metrics {args.metrics}"] if args.metrics else []),
                ]
            ),
            on_progress=lambda what, done, total, name=name: (
                print(f"{name}: {what} {done}/{total}", flush=True) if done == total else None
            ),
        )
        common.save(f"reproduce-{name}-{on}", result.document)
        if name == DRAWN:
            figures_module.draw_reproduction(result, common.IMAGES / "reproduce.png")
        lines = result.markdown()
        if text := gains(result):
            lines += ["", text]
        common.fill_page(f"table {name}", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
