"""The error of estimates by step and site, as shaded cells."""

from __future__ import annotations

from collections.abc import Sequence

from forecache.report.html import charts
from forecache.report.html.charts import Cells
from forecache.report.html.data import ReportData
from forecache.report.html.markup import Html, tag

MAX_CELLS = 40_000


def step_errors(data: ReportData) -> Html:
    """One picture a plan; all share one scale."""
    tables = {name: table for name, table in data.errors.items() if table[0] and len(table[0]) * len(table[1][0]) > 0}
    if not tables:
        return Html("")
    known = sorted(value for _, rows in tables.values() for row in rows for value in row if value)
    top = known[min(len(known) - 1, int(0.95 * len(known)))] if known else 1.0
    note = (
        "Relative L2 error of every estimate, made of the features of a run without a cache: what the forecast misses, "
        "without what earlier errors did to the image. Step 0 is the noisiest."
    )
    parts = [tag("p", note, class_="note")]
    for number, (name, (sites, rows)) in enumerate(tables.items()):
        if len(sites) * len(rows[0]) > MAX_CELLS:
            continue
        drawn = charts.heat_map(_cells(sites, rows, top), f"Error of {name}", _legend(top))
        title = f"{name}: {_mean(rows)}"
        parts.append(tag("details", tag("summary", title), drawn, open="open" if number == 0 else None))
    return tag("section", tag("h2", "Error by step and site"), *parts)


def _cells(sites: Sequence[str], rows: Sequence[Sequence[float | None]], top: float) -> Cells:
    classes = [[_class(value, top) for value in row] for row in rows]
    words = [[f"step {step}: {_words(value)}" for step, value in enumerate(row)] for row in rows]
    return Cells(sites, classes, words)


def _class(value: float | None, top: float) -> str:
    return "unknown" if value is None else f"shade{min(9, int(10 * value / top))}"


def _words(value: float | None) -> str:
    if value is None:
        return "its error is not known"
    return f"error of {value:.2%}" if value else "computed"


def _legend(top: float) -> dict[str, str]:
    return {"shade0": "computed, or no error", "shade9": f"{top:.2%} and more", "unknown": "not known"}


def _mean(rows: Sequence[Sequence[float | None]]) -> str:
    values = [value for row in rows for value in row if value]
    return f"mean error of an estimate {sum(values) / len(values):.2%}" if values else "no estimate has a known error"
