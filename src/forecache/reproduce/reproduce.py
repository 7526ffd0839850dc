"""A paper's table measured again: every row is sampled in shards, evaluated, and set beside its published figures.

    table = open_table("goc-table-3")
    result = reproduce(table, open_testbed(table), "out/goc-table-3", Protocol(samples=300))
    print("\\n".join(result.markdown()))

A finished row is written to a file and not measured again; the finished shards of the others are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.environment import environment
from forecache.io import files as io_files
from forecache.reproduce import files
from forecache.reproduce.latency import Spread
from forecache.reproduce.result import Reproduction
from forecache.reproduce.table import Table
from forecache.reproduce.testbed import Testbed
from forecache.reproduce.worker import OnProgress, Protocol, Worker


def reproduce(
    table: Table,
    testbed: Testbed,
    out: Path | str,
    protocol: Protocol = Protocol(),  # noqa: B008 - it is frozen
    *,
    rows: Sequence[str] = (),
    command: str = "",
    on_progress: OnProgress | None = None,
) -> Reproduction:
    """Measure a table, or some of its rows and the one without a cache, and write the result to a folder.

    Every row is sampled by `sample_shards` in a folder of its own and evaluated once. Finished rows are skipped, so the
    same call continues after an interruption, and other rows can be measured later. Under torchrun or ``accelerate
    launch`` the processes share calibration and sampling, and the first one evaluates. Writes ``result.json`` and
    ``table.md``; the resamples are in ``rows/``.

    rows: names of rows; empty measures all.
    command: the command that made the result, for the record.
    on_progress: called with the phase, the number of finished samples, and their total.

    Raises TableError for an unknown row, or if ``out`` holds another reproduction; InputError if a metric or a row
    lacks what it needs.
    """
    worker = Worker(table, testbed, Path(out), protocol, on_progress or _silent)
    wanted = worker.select(rows)
    worker.check(wanted)
    if worker.world.leads:
        files.join(worker.out, worker.settings())
    plans = worker.plans(wanted)
    worker.refuse_other_plans(plans)
    for row in wanted:
        worker.measure(row, plans[row.name])
    worker.time(wanted, plans)
    result = _result(worker, command)
    if worker.world.leads:
        io_files.write_json(worker.out / "result.json", {**result.document, "forecache": __version__}, indent=1)
        io_files.write(worker.out / "table.md", "\n".join(result.markdown()) + "\n")
    return result


def _silent(*_: Any) -> None:
    pass


def _result(worker: Worker, command: str) -> Reproduction:
    """The finished rows, of this call and of earlier ones."""
    rows = {row.name: files.read_row(worker.file(row)) for row in worker.table.rows}
    measured = {name: row for name, row in rows.items() if row is not None}
    spreads = worker.latencies()
    return Reproduction(worker.table, _document(worker, command, measured, spreads), measured, spreads)


def _document(
    worker: Worker, command: str, measured: Mapping[str, Mapping[str, Any]], spreads: Mapping[str, Spread]
) -> dict[str, Any]:
    table, testbed = worker.table, worker.testbed
    by_name = {row.name: row for row in table.rows}
    values = {
        "command": command,
        "table": {key: getattr(table, key) for key in ("name", "title", "paper", "number", "model", "sha256")}
        | {"notes": list(table.notes)},
        "on": testbed.name,
        "notes": list(testbed.notes),
        "metrics": list(testbed.metrics),
        "extractor": extractor.name if (extractor := testbed.judges.extractor) is not None else None,
        "reference": testbed.reference.name if testbed.reference is not None else None,
        "protocol": {
            "sampler": table.sampler,
            "steps": table.steps,
            "guidance": testbed.guidance,
            "samples": worker.samples,
            "conditions": table.conditions,
            "seed": worker.seed,
            "batch": worker.batch,
            "call_size": worker.call_size,
            "resamples": worker.resamples,
        },
        "environment": environment(),
        "rows": [
            dict(row)
            | {"figures": {key: figure.document(draws=False) for key, figure in row["figures"].items()}}
            | {"published": dict(by_name[name].published), "note": by_name[name].note}
            | ({"latency": asdict(spreads[name])} if name in spreads else {})
            for name, row in measured.items()
        ],
        "missing": [row.name for row in table.rows if row.name not in measured and not row.absent],
        "absent": {row.name: row.absent for row in table.rows if row.absent},
    }
    return files.RESULT.wrap(values)
