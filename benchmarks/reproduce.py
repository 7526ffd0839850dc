"""GOC's table 3 on the bundled digits, beside the published figures.

    python benchmarks/reproduce.py [--samples 320]       ten minutes on one core; it continues after an interruption

The same as `forecache reproduce goc-table-3 --on digits`. Writes benchmarks/results/reproduce-goc-table-3-digits.json
with command, hardware and versions, docs/images/reproduce.png, and the table of docs/reproduce.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import common

from forecache.evaluate import difference
from forecache.evaluate.estimates import Z
from forecache.report import figures as figures_module
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.result import Reproduction
from forecache.reproduce.table import open_table
from forecache.reproduce.testbed import TestbedOptions, open_testbed
from forecache.reproduce.worker import Protocol

TABLE, ON = "goc-table-3", "digits"


BASES = {
    "FORA 50 % + GOC, eta 1.2": "FORA 50 %",
    "FORA 25 % + GOC, eta 1.7": "FORA 25 %",
    "L2C 22 % + GOC, eta 1.0": "L2C 22 %",
}


def gains(result: Reproduction) -> str:
    """FID and PSNR of each correction, minus those of its base."""
    texts = []
    for name, base in BASES.items():
        of, other = result.measured[name]["figures"], result.measured[base]["figures"]
        differences = {key: difference(of[key], other[key]) for key in ("fid", "psnr")}
        cells = [f"{change.value:+.2f} ± {Z * (change.error or 0):.2f}" for change in differences.values()]
        texts.append(f"{name}: FID {cells[0]}, PSNR {cells[1]} dB")
    return f"Minus its base: {'; '.join(texts)}."


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--samples", type=int, default=320, help="samples of a row")
    args = parser.parse_args(words)
    table = open_table(TABLE)
    result = reproduce(
        table,
        open_testbed(table, ON, TestbedOptions(), "cpu"),
        common.WORK / f"reproduce/{TABLE}-{ON}",
        Protocol(samples=args.samples),
        command=f"forecache reproduce {TABLE} --on {ON} --samples {args.samples}",
        on_progress=lambda what, done, total: print(f"{what} {done}/{total}", flush=True) if done == total else None,
    )
    minutes = sum(row["sampling_seconds"] + row["evaluation_seconds"] for row in result.measured.values()) / 60
    common.save(f"reproduce-{TABLE}-{ON}", result.document)
    figures_module.draw_reproduction(result, common.IMAGES / "reproduce.png")
    spent = f"`{result.document['command']}` took {minutes:.1f} minutes, on cores that other work shared."
    common.fill_page("table goc-table-3", [*result.markdown(), "", gains(result), "", spent])


if __name__ == "__main__":
    main(sys.argv[1:])
