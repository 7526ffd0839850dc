"""GOC's table 3 by its own protocol on the bundled digits, beside the published figures.

    python benchmarks/reproduce.py [--samples 320]       (ten minutes on one core; it continues after an interruption)

Runs what `forecache reproduce goc-table-3 --on digits` runs, with its result in benchmarks/results (command,
hardware and versions in it), the picture in docs/images, and the tables between the markers in
docs/reproduce.md and README.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from digits import ROOT, fill

from forecache.evaluate import Estimate, difference
from forecache.evaluate.estimates import Z
from forecache.report import figures as figures_module
from forecache.reproduce.reproduce import reproduce
from forecache.reproduce.result import Reproduction
from forecache.reproduce.table import open_table
from forecache.reproduce.testbed import TestbedOptions, open_testbed
from forecache.reproduce.worker import Protocol

TABLE, ON = "goc-table-3", "digits"
RESULT = ROOT / f"benchmarks/results/reproduce-{TABLE}-{ON}.json"


def short(result: Reproduction) -> list[str]:
    """FID, PSNR and speed alone, measured and published in one line a row."""
    title = "| plan | fewer MACs | published | FID | minus no cache | FID, published | PSNR, dB |"
    lines = [title, "|---" * 7 + "|"]
    for row in result.table.rows:
        here: Mapping[str, Any] = result.measured[row.name]
        figures: Mapping[str, Estimate] = here["figures"]
        macs = f"{here['macs_ratio']:.2f}x" if row.recipe else ""
        speed = f"{row.published['speed']}x" if row.recipe and "speed" in row.published else ""
        closeness = str(figures["psnr"]) if row.recipe else ""
        change = result.changes(row.name).get("fid")
        less = f"{change.value:+.2f} ± {Z * change.error:.2f}" if change and change.error is not None else ""
        cells = [row.name, macs, speed, f"{figures['fid'].value:.2f}", less, row.published.get("fid", ""), closeness]
        lines.append(f"| {' | '.join(cells)} |")
    protocol, place = result.document["protocol"], result.document["environment"]
    note = (
        f"Measured on digits ({protocol['samples']} samples, features of its classifier; ± 95 %), {place['cpu']}, "
        f"torch {place['torch']}; published for DiT-XL/2 on ImageNet ({result.table.source}): other images, so FID "
        "compares down a column only."
    )
    return [*lines, "", note]


BASES = {
    "FORA 50 % + GC": "FORA 50 %",
    "FORA 50 % + GOC, eta 1.2": "FORA 50 %",
    "FORA 25 % + GOC, eta 1.7": "FORA 25 %",
    "L2C 22 % + GOC, eta 1.0": "L2C 22 %",
}


def gains(result: Reproduction) -> str:
    """FID and PSNR of each correction minus those of its base."""
    texts = []
    for name, base in BASES.items():
        of, other = result.measured[name]["figures"], result.measured[base]["figures"]
        found = {key: difference(of[key], other[key]) for key in ("fid", "psnr")}
        cells = [f"{each.value:+.2f} ± {Z * (each.error or 0):.2f}" for each in found.values()]
        texts.append(f"{name}: FID {cells[0]}, PSNR {cells[1]} dB")
    return f"Minus its base: {'; '.join(texts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=320, help="a row")
    args = parser.parse_args()
    table = open_table(TABLE)
    result = reproduce(
        table,
        open_testbed(table, ON, TestbedOptions(), "cpu"),
        ROOT / f"out/reproduce/{TABLE}-{ON}",
        Protocol(samples=args.samples),
        command=f"forecache reproduce {TABLE} --on {ON} --samples {args.samples}",
        on_progress=lambda what, done, total: print(f"{what} {done}/{total}", flush=True) if done == total else None,
    )
    minutes = sum(row["sampling_seconds"] + row["evaluation_seconds"] for row in result.measured.values()) / 60
    RESULT.write_text(json.dumps(result.document, indent=1) + "\n")
    figures_module.draw_reproduction(result, ROOT / "docs/images/reproduce.png")
    spent = f"`{result.document['command']}` took {minutes:.1f} minutes, on cores that other work shared."
    fill(ROOT / "docs/reproduce.md", "table goc-table-3", [*result.markdown(), "", gains(result), "", spent])
    fill(ROOT / "README.md", "reproduce", short(result))


if __name__ == "__main__":
    main()
