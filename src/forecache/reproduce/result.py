"""The result of a reproduction: measured rows beside the published ones, as tables and as a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forecache.evaluate import Difference, Estimate, Row, difference, tables
from forecache.evaluate.estimates import Z
from forecache.evaluate.metrics import METRICS
from forecache.reproduce.latency import Spread, base_of
from forecache.reproduce.table import Table, TableRow

FLOPS, LATENCY, RATIO = "TFLOPs", "latency, s", "of its base"
"""Titles of columns."""

CHANGES = (
    "Each row minus the one without a cache, ± half of a 95 % interval of the difference. Both start from the same "
    "noise, so the difference is known much better than either figure. Bold: larger than its interval."
)


@dataclass(frozen=True)
class Reproduction:
    """The rows of a table that have been measured so far.

    table: the paper's table.
    document: the result for JSON: table, protocol, hardware, versions, rows.
    measured: the finished rows by name, as `files.read_row` reads them.
    latencies: the latencies of timed rows, by name.
    """

    table: Table
    document: Mapping[str, Any]
    measured: Mapping[str, Mapping[str, Any]] = field(repr=False)
    latencies: Mapping[str, Spread] = field(default_factory=dict, repr=False)

    @property
    def rows(self) -> list[Row]:
        """Rows for `forecache.evaluate.tables`: every measured row, followed by its published figures."""
        rows: list[Row] = []
        metrics = set(self.document["metrics"])
        for row in self.table.rows:
            if (measured := self.measured.get(row.name)) is None and not row.absent:
                continue
            if measured is not None:
                figures: Mapping[str, Estimate] = measured["figures"]
                columns = self._columns(row, measured)
                rows.append(Row(row.name, figures, row.recipe is not None, (measured["seed"],), columns))
            published = {name: value for name, value in row.published.items() if name in metrics}
            columns = self._published(row)
            if published or any(columns.values()):
                name = "published" if measured is not None else f"{row.name}, published"
                rows.append(Row(name, published, competes=False, more=columns))
        return rows

    def _columns(self, row: TableRow, measured: Mapping[str, Any]) -> dict[str, str]:
        """Figures of a measured row besides the metrics."""
        ratio = measured["macs_ratio"]
        columns = {"fewer MACs": f"{ratio:.2f}x" if ratio and row.recipe is not None else ""}
        if (flops := self.table.flops) is not None:
            total = (measured["macs"] or 0) * flops.per_mac * flops.steps / self.table.steps
            columns[FLOPS] = f"{total / 1e12:.4g}" if total else ""
        if self.table.latency is not None:
            spread = self.latencies.get(row.name)
            columns[LATENCY] = f"{spread.mean:.3f} ± {spread.deviation:.3f}" if spread else ""
            columns[RATIO] = f"{spread.ratio:.3f}" if spread and spread.ratio else ""
        return columns | {"sampling, s": f"{measured['sampling_seconds']:.0f}"}

    def _published(self, row: TableRow) -> dict[str, str]:
        """Published figures of a row besides the metrics."""
        figures = row.published
        speed = figures.get("speed", "1")
        columns = {"fewer MACs": f"{speed}x" if speed != "1" else ""}
        if self.table.flops is not None:
            columns[FLOPS] = figures.get("flops", "")
        if self.table.latency is not None:
            deviation = f" ± {figures['deviation']}" if "deviation" in figures else ""
            columns[LATENCY] = figures.get("latency", "") + deviation
            base = base_of(self.table, row)
            both = base is not None and "latency" in figures and "latency" in base.published
            ratio = float(figures["latency"]) / float(base.published["latency"]) if base is not None and both else None
            columns[RATIO] = f"{ratio:.3f}" if ratio else ""
        return columns

    def markdown(self) -> list[str]:
        """The lines of the table, of its legend, and of the table of changes."""
        lines = [*tables.markdown(self.rows, self.document["metrics"]), "", self.legend()]
        if any(map(self.changes, self.measured)):
            lines += ["", *self.changes_markdown(), "", CHANGES]
        return lines

    def changes(self, row: str) -> dict[str, Difference]:
        """Every metric of a row minus that of the row without a cache; empty for the latter.

        Both rows start from the same noise, so the difference is known much better than either figure.
        """
        uncached = self.measured.get(self.table.rows[0].name)
        if uncached is None or row == uncached["name"]:
            return {}
        figures = self.measured[row]["figures"]
        return {name: difference(figures[name], figure) for name, figure in uncached["figures"].items()}

    def changes_markdown(self) -> list[str]:
        """`changes` as the lines of a table; a bold one is larger than its 95 % interval."""
        rows = {name: changes for name in self.measured if (changes := self.changes(name))}
        metrics = [METRICS[name] for changes in list(rows.values())[:1] for name in changes]
        header = " | ".join(metric.title for metric in metrics)
        lines = [f"| minus no cache | {header} |", "|---" * (1 + len(metrics)) + "|"]
        for name, changes in rows.items():
            cells = []
            for metric in metrics:
                change = changes[metric.name]
                text = f"{change.value:+.{metric.digits}f}"
                text += f" ± {Z * change.error:.{metric.digits}f}" if change.error is not None else ""
                cells.append(f"**{text}**" if change.real else text)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return lines

    def legend(self) -> str:
        """One paragraph: model, samples, hardware and versions, and the source of the published figures."""
        protocol, machine = self.document["protocol"], self.document["environment"]
        extractor = f"features of {self.document['extractor']}; " if self.document["extractor"] else ""
        threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        hardware = f"{machine['gpu'] or machine['cpu'] + ', ' + threads}, torch {machine['torch']}"
        other = "" if self.document["on"] == self.table.model else ", which is another model with other images"
        if (flops := self.table.flops) is not None:
            other += f"; TFLOPs are of {flops.steps} steps of one image, {flops.per_mac} a multiply-accumulate"
        if (latency := self.table.latency) is not None:
            images = f"{latency.images} images" if latency.images > 1 else "one image"
            other += f"; latency of {images}, mean and standard deviation of {latency.rounds} rounds in turn"
        return (
            f"Measured: {self.document['on']}, {self.table.steps} steps, guidance {protocol['guidance']:g}, "
            f"{protocol['samples']} samples per row, seed {protocol['seed']}; {extractor}{hardware}, diffusers "
            f"{machine['diffusers']}. Published: {self.table.source}, {self.table.model}{other}; its speed-up is in "
            "the column of fewer MACs. Seconds are the row's sampling time on a machine that may have run other work; "
            f"`forecache bench` compares speed. {tables.legend(self.rows)}"
        )
