"""A table of a paper, measured again: every row sampled in shards, evaluated, and held beside what was published.

    table = open_table("goc-table-3")
    result = reproduce(table, open_testbed(table, "digits", TestbedOptions()), Path("out"), Protocol(samples=300))
    print("\\n".join(result.markdown()))

A row is written when it is done and not measured again; what is finished of the others is kept by their shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forecache._version import __version__
from forecache.environment import environment
from forecache.evaluate import Difference, Estimate, Row, difference, tables
from forecache.evaluate.estimates import Z
from forecache.evaluate.metrics import METRICS
from forecache.io import files as io_files
from forecache.reproduce import files
from forecache.reproduce.table import Table, open_table
from forecache.reproduce.testbed import Testbed, TestbedOptions, open_testbed
from forecache.reproduce.worker import OnProgress, Protocol, Run

__all__ = ["TestbedOptions", "Testbed", "Protocol", "Reproduction", "open_testbed", "open_table", "reproduce"]


CHANGES = (
    "Each row less the one without a cache, ± half of a 95 % interval of the difference: both begin with the same "
    "noise, so that it is known much better than either figure. Bold: larger than its interval, for better or worse."
)


@dataclass(frozen=True)
class Reproduction:
    """What was measured so far. document: for a JSON file. table: what was asked for."""

    table: Table
    document: Mapping[str, Any]
    measured: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @property
    def rows(self) -> list[Row]:
        """For `forecache.evaluate.tables`: each row as measured, and under it as published."""
        found: list[Row] = []
        for row in self.table.rows:
            if (here := self.measured.get(row.name)) is None:
                continue
            figures: Mapping[str, Estimate] = here["figures"]
            macs = f"{here['macs_ratio']:.2f}x" if here["macs_ratio"] else ""
            more = {"fewer MACs": macs, "sampling, s": f"{here['sampling_seconds']:.0f}"}
            found.append(Row(row.name, figures, row.recipe is not None, (here["seed"],), more))
            speed = f"{row.published['speed']}x" if "speed" in row.published else ""
            known = {name: value for name, value in row.published.items() if name in figures}
            if known or speed:
                more = {"fewer MACs": speed if speed != "1x" else ""}
                found.append(Row("published", known, competes=False, more=more))
        return found

    def markdown(self) -> list[str]:
        """The table with measured and published figures side by side, and what it was measured with."""
        metrics = self.document["metrics"]
        lines = [*tables.markdown(self.rows, metrics), "", self.legend()]
        if any(map(self.changes, self.measured)):
            lines += ["", *self.changes_markdown(), "", CHANGES]
        return lines

    def changes(self, row: str) -> dict[str, Difference]:
        """Every metric of a row less that of the row without a cache.

        Both begin with the same noise, so that this is known much better than either figure.
        """
        none = self.measured.get(self.table.rows[0].name)
        if none is None or row == none["name"]:
            return {}
        figures = self.measured[row]["figures"]
        return {name: difference(figures[name], figure) for name, figure in none["figures"].items()}

    def changes_markdown(self) -> list[str]:
        """`changes` as a table; bold is what is larger than its 95 % interval."""
        rows = [(name, self.changes(name)) for name in self.measured if self.changes(name)]
        metrics = [METRICS[name] for name in (rows[0][1] if rows else ())]
        lines = [f"| less no cache | {' | '.join(each.title for each in metrics)} |", "|---" * (1 + len(metrics)) + "|"]
        for name, found in rows:
            cells = []
            for each in metrics:
                change = found[each.name]
                text = f"{change.value:+.{each.digits}f}"
                text += f" ± {Z * change.error:.{each.digits}f}" if change.error is not None else ""
                cells.append(f"**{text}**" if change.real else text)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def legend(self) -> str:
        """One paragraph: models, samples, hardware, and what is published."""
        of, place = self.document["protocol"], self.document["environment"]
        judged = f"features of {self.document['extractor']}; " if self.document["extractor"] else ""
        threads = "1 thread" if place["threads"] == 1 else f"{place['threads']} threads"
        where = f"{place['gpu'] or place['cpu'] + ', ' + threads}, torch {place['torch']}"
        other = "" if self.document["on"] == self.table.model else ", which is another model and other images"
        return (
            f"Measured: {self.document['on']}, {self.table.steps} steps, guidance {of['guidance']:g}, {of['samples']} "
            f"samples a row, seed {of['seed']}; {judged}{where}, diffusers {place['diffusers']}. "
            f"Published: {self.table.source}, {self.table.model}{other}; its speed-up stands under fewer MACs. "
            "Seconds are those of the row's sampling, whatever else the machine did; `forecache bench` compares speed. "
            f"{tables.legend(self.rows)}"
        )


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
    """Measure a table, or some ``rows`` of it beside the one without a cache, and write the result to ``out``.

    Every row is sampled by `sample_shards` in a folder of its own and evaluated once; finished rows are skipped, so
    that the same call continues after any interruption, and other rows can be asked for later. Under torchrun or
    ``accelerate launch`` the processes share calibration and sampling, and the first one evaluates. Writes
    ``result.json`` and ``table.md``; resamples stay in ``rows/``.

    command: what a reader would type, for the record. on_progress: what is done, how much of it, and how much there is.

    Raises TableError for an unknown row, or if ``out`` holds another reproduction, InputError for what a metric lacks.
    """
    run = Run(table, testbed, Path(out), protocol, on_progress or _silent)
    wanted = run.chosen(rows)
    run.check(wanted)
    if run.world.leads:
        files.join(run.out, run.settings())
    plans = run.plans(wanted)
    run.refuse_other_plans(plans)
    for row in wanted:
        run.measure(row, plans[row.name])
    result = _result(run, command)
    if run.world.leads:
        io_files.write_json(run.out / "result.json", {**result.document, "forecache": __version__}, indent=1)
        io_files.write(run.out / "table.md", "\n".join(result.markdown()) + "\n")
    return result


def _silent(*_: Any) -> None:
    pass


def _result(run: Run, command: str) -> Reproduction:
    """What is finished of the table, rows that were asked for before among them."""
    rows = {row.name: files.read_row(run.file(row)) for row in run.table.rows}
    measured = {name: row for name, row in rows.items() if row is not None}
    return Reproduction(run.table, _document(run, command, measured), measured)


def _document(run: Run, command: str, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    table, testbed = run.table, run.testbed
    about = {row.name: row for row in table.rows}
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
            "samples": run.samples,
            "conditions": table.conditions,
            "seed": run.seed,
            "batch": run.batch,
            "call_size": run.call_size,
            "resamples": run.resamples,
        },
        "environment": environment(),
        "rows": [
            dict(row)
            | {"figures": {key: figure.document(draws=False) for key, figure in row["figures"].items()}}
            | {"published": dict(about[name].published), "note": about[name].note}
            for name, row in measured.items()
        ],
        "missing": [row.name for row in table.rows if row.name not in measured],
    }
    return files.RESULT.wrap(values)
