"""Tables of estimates: a value is bold if it is better than all others by more than the interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forecache.errors import MissingExtraError
from forecache.evaluate.estimates import Estimate, comparable, difference
from forecache.evaluate.metrics import METRICS


@dataclass(frozen=True)
class Row:
    """A row of a table.

    name: first cell
    figures: by metric; a plain number or a text is a published value, which is never compared
    competes: whether the row is compared with others; the row without a cache need not be
    seeds: of the sampling
    more: texts by column title; these columns precede those of the metrics
    """

    name: str
    figures: Mapping[str, Estimate | float | str | None]
    competes: bool = True
    seeds: tuple[int, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cells:
    """The texts of a table, and the positions of those in bold."""

    header: list[str]
    texts: list[list[str]]
    bold: set[tuple[int, int]] = field(default_factory=set)


def best(rows: Sequence[Row], metric: str) -> int | None:
    """The index of the row that is better than every other by more than the interval of the difference; else None.

    Only estimates with intervals are compared, and at least two. Sets of different sizes are not compared if the size
    biases the metric, and values that are printed alike do not differ.
    """
    measured = {
        index: figure
        for index, row in enumerate(rows)
        if row.competes and isinstance(figure := row.figures.get(metric), Estimate)
    }
    if len(measured) < 2:
        return None
    sign = 1 if METRICS[metric].better == "higher" else -1
    first = max(measured, key=lambda index: sign * measured[index].value)
    others = [figure for index, figure in measured.items() if index != first]
    return first if all(_differ(measured[first], other) for other in others) else None


def _differ(a: Estimate, b: Estimate) -> bool:
    return comparable(a, b) and difference(a, b).real and a.text != b.text


def markdown(rows: Sequence[Row], metrics: Sequence[str] | None = None) -> list[str]:
    """The lines of a Markdown table."""
    cells = _cells(rows, metrics)
    lines = [_line(cells.header), _line(["---"] * len(cells.header))]
    for i, texts in enumerate(cells.texts):
        lines.append(_line([f"**{text}**" if (i, j) in cells.bold else text for j, text in enumerate(texts)]))
    return lines


def rich_table(rows: Sequence[Row], metrics: Sequence[str] | None = None, title: str | None = None) -> Any:
    """A `rich.table.Table` with a line a metric, which fits a terminal. Needs the extra ``cli``."""
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise MissingExtraError("rich", "cli", "A table for a terminal") from error
    cells = _cells(rows, metrics)
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    for number, name in enumerate(["", *(texts[0] for texts in cells.texts)]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for j, name in list(enumerate(cells.header))[1:]:
        texts = [Text(row[j], style="bold" if (i, j) in cells.bold else "") for i, row in enumerate(cells.texts)]
        table.add_row(name, *texts)
    return table


def legend(rows: Sequence[Row]) -> str:
    """The legend of a table, with the number of resamples and the seed."""
    figures = [figure for row in rows for figure in row.figures.values() if isinstance(figure, Estimate)]
    with_draws = [figure for figure in figures if figure.draws]
    if not with_draws:
        return "No intervals: nothing was resampled, so no difference is judged."
    counts = sorted({len(figure.draws) for figure in with_draws})
    seeds = sorted({figure.seed for figure in with_draws if figure.seed is not None})
    return (
        f"± half of a 95 % interval, from {_range(counts)} bootstrap resamples of the samples (seed {_range(seeds)}; "
        "the reference is kept). Bold: better than every other row by more than the interval of the difference."
    )


def _cells(rows: Sequence[Row], metrics: Sequence[str] | None) -> _Cells:
    names = list(metrics or dict.fromkeys(name for row in rows for name in row.figures))
    seeded = any(row.seeds for row in rows)
    arrows = {"higher": "↑", "lower": "↓"}
    titles = [f"{METRICS[name].title} {arrows[METRICS[name].better]}" for name in names]
    columns = list(dict.fromkeys(title for row in rows for title in row.more))
    header = ["", *columns, *titles, "samples", *(["seeds"] if seeded else [])]
    texts = []
    for row in rows:
        counts = sorted({figure.count for figure in row.figures.values() if isinstance(figure, Estimate)})
        seeds = [", ".join(map(str, row.seeds))] if seeded else []
        cells = [row.more.get(title, "") for title in columns]
        cells += [_text(name, row.figures.get(name)) for name in names]
        texts.append([row.name, *cells, _range(counts), *seeds])
    first = 1 + len(columns)
    bold = {(index, column) for column, name in enumerate(names, first) if (index := best(rows, name)) is not None}
    return _Cells(header, texts, bold)


def _text(metric: str, value: Estimate | float | str | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, Estimate | str) else f"{value:.{METRICS[metric].digits}f}"


def _range(values: Sequence[int]) -> str:
    return "" if not values else str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
