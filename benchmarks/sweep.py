"""Every pipeline of diffusers that can be built small, with a plan and without: docs/measured/pipelines.md.

python benchmarks/sweep.py [--only NAME ...] [--fast] [--processes N]

Lists the pipeline and transformer classes of the diffusers that is installed, builds each pipeline small, of random
weights and its real classes, and samples by its default call, guided, and in a batch of two. A row is *right* if

a. a plan that computes everything gives the run without a plan, bit for bit,
b. FORA at interval 2 gives what a FORA gives that is written out by hand (benchmarks/pipelines/reference.py),
c. as many sites are computed and skipped as there,
d. a second run gives the same bits,
e. nothing is left behind: types, attributes, hooks, forwards, tensors, and the bits of a run without a plan.

*refused* is our own error, and its sentence; *not built* has its reason; *WRONG* is a fault. What an error advises is
followed, as a user would: names of modules, of lanes, another number of steps.

--only NAME ...   these pipelines, printed and not written
--fast            one pipeline a transformer class, by its default call, printed and not written
--processes N     processes at a time (default 1); a crash of one is a row
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import common

CHUNK = 20
"""Pipelines that share a process, and the seconds that loading diffusers takes."""

FAST = (
    "DiTPipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "SanaPipeline",
    "Lumina2Pipeline",
    "CogView4Pipeline",
    "WanPipeline",
)
"""Pipelines of `--fast`: every level, guidance in one call and in two, lanes that are named and that are not."""


def rows_of(names: Sequence[str], variants: Sequence[str] | None = None) -> Iterable[dict[str, Any]]:
    """The rows of these pipelines, sampled in this process."""
    from pipelines import rows  # loads diffusers

    for name in names:
        for row in rows.rows(name, variants):
            yield asdict(row)


def in_process(names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these pipelines, sampled in a process of its own; where it ends early, the rest gets another one."""
    left, results = list(names), []
    while left:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            words = [sys.executable, __file__, "--chunk", *left, "--out", str(path)]
            code = subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode
            fresh = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
        results += fresh
        ended = {row["name"] for row in fresh}
        left = [name for name in left if name not in ended]
        if left and code != 0:
            crashed = {"name": left.pop(0), "variant": "default", "verdict": "WRONG"}
            results.append(crashed | {"reason": f"the process ended with {code}"})
        elif left:
            raise RuntimeError(f"no rows of {left}")
    return results


def chunk(names: Sequence[str], path: Path) -> None:
    """Write the rows of these pipelines, a line each."""
    with path.open("w") as file:
        for row in rows_of(names):
            print(json.dumps(row), file=file, flush=True)
            print(line(row), flush=True)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    note = row.get("reason") or ", ".join(row.get("followed", ()))
    return f"{row['verdict']:10} {row['name']} ({row['variant']}) {row.get('level', '')} {note[:150]}".rstrip()


def everything(processes: int) -> list[dict[str, Any]]:
    """The rows of all pipelines."""
    from pipelines.walk import pipeline_classes

    names = list(pipeline_classes())
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    with ThreadPoolExecutor(processes) as pool:
        return [row for part in pool.map(in_process, chunks) for row in part]


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--chunk", nargs="+", metavar="NAME", help="for this script's own processes")
    parser.add_argument("--out", type=Path, help="for this script's own processes")
    options = parser.parse_args(words)
    if options.chunk:
        chunk(options.chunk, options.out)
        return
    if options.only or options.fast:
        some = rows_of(options.only or FAST, ["default"] if options.fast else None)
        for row in some:
            print(line(row), flush=True)
        return
    from pipelines.table import write

    start = time.perf_counter()
    results = everything(options.processes)
    write(results, common.command("sweep.py", words), time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
