"""Charts as SVG and HTML: heat maps, curves and scatter plots. The text of every mark is in the page, for any reader.

Colours come from the page's style sheet, which has a light and a dark theme.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forecache.report.html.markup import Html, join, tag

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 40


@dataclass(frozen=True)
class Cells:
    """The cells of a heat map.

    names: the name of every line.
    classes: by line and cell, the CSS class that colours it.
    words: by line and cell, its description.
    """

    names: Sequence[str]
    classes: Sequence[Sequence[str]]
    words: Sequence[Sequence[str]]


def heat_map(cells: Cells, label: str, legend: Mapping[str, str]) -> Html:
    """Lines x steps as coloured cells; a cell's description is shown below when it is pointed at, tapped or selected.

    label: name of the chart, for screen readers.
    legend: meanings by CSS class.
    """
    lines, steps = len(cells.names), len(cells.classes[0])
    height = 16 if lines <= 40 else 9 if lines <= 120 else 6
    rects = [_rectangles(row, line) for line, row in enumerate(cells.classes)]
    svg = tag(
        "svg", *rects, tag("rect", class_="mark", x=0, y=0, width=1, height=1),
        viewBox=f"0 0 {steps} {lines}", preserveAspectRatio="none", style=f"height:{height * lines}px",
        aria_hidden="true",
    )  # fmt: skip
    named = max(1, math.ceil(14 / height))  # one line in this many has room for its name
    names = [tag("span", name if line % named == 0 else "", title=name) for line, name in enumerate(cells.names)]
    column = tag("div", *names, class_="names", style=f"line-height:{height}px", aria_hidden="true")
    spacing = max(1, math.ceil(steps / 10))
    ticks = [
        tag("span", str(step), style=f"left:{100 * (step + 0.5) / steps:.3f}%") for step in range(0, steps, spacing)
    ]
    known = list(dict.fromkeys(text for row in cells.words for text in row))
    index_of = {text: index for index, text in enumerate(known)}
    data = {"steps": steps, "names": list(cells.names), "known": known}
    data |= {"words": [[index_of[text] for text in row] for row in cells.words]}
    area = tag(
        "div", svg, tag("div", *ticks, class_="ticks", aria_hidden="true"),
        class_="cells", tabindex=0, role="application", aria_label=f"{label}. Arrow keys move from cell to cell.",
        data_cells=json.dumps(data),
    )  # fmt: skip
    output = tag("output", "Point at a cell, or move with the arrow keys.", class_="said", aria_live="polite")
    keys = [tag("li", tag("i", class_=f"key {name}"), meaning) for name, meaning in legend.items()]
    return tag("figure", tag("div", column, area, class_="map"), output, tag("ul", *keys, class_="legend"))


def _rectangles(row: Sequence[str], line: int) -> Html:
    """The rectangles of a line; neighbours of one class share one."""
    rectangles, start = [], 0
    for step in range(1, len(row) + 1):
        if step == len(row) or row[step] != row[start]:
            rectangles.append(tag("rect", class_=f"cell {row[start]}", x=start, y=line, width=step - start, height=1))
            start = step
    return join(*rectangles)


def curves(lines: Mapping[str, Sequence[float]], label: str, across: str, up: str) -> Html:
    """Curves over steps, named in a legend.

    label: name of the chart, for screen readers. across, up: labels of the axes.
    """
    highest = max((value for line in lines.values() for value in line), default=1.0)
    count = max(map(len, lines.values()))
    frame = _Frame((0.0, max(1.0, count - 1.0)), (0.0, highest or 1.0))
    drawn = []
    for index, (name, line) in enumerate(lines.items()):
        path = " ".join(f"{'M' if not step else 'L'}{frame.x(step)},{frame.y(y)}" for step, y in enumerate(line))
        drawn.append(tag("path", class_=f"curve f{index % 6}", d=path))
        drawn += [
            _point(frame, step, y, f"{name}, step {step}: {y:.4g}", f"dot f{index % 6}") for step, y in enumerate(line)
        ]
    keys = [tag("li", tag("i", class_=f"key f{index % 6}"), name) for index, name in enumerate(lines)]
    return _figure(frame, drawn, label, (across, up), tag("ul", *keys, class_="legend"))


@dataclass(frozen=True)
class Point:
    """A point of a scatter plot.

    name: its name in the legend.
    x, y: its position.
    group: points of one group are joined by the line of their Pareto front.
    colour: index of the group's colour; six colours repeat.
    number: the number in its mark; None for its position among the points.
    """

    name: str
    x: float
    y: float
    group: str
    colour: int
    number: int | None = None


def scatter(
    points: Sequence[Point],
    label: str,
    across: str,
    up: str,
    *,
    sign: int = 1,
    diagonal: bool = False,
    most: float = math.inf,
) -> Html:
    """Numbered points, named in a list below; a line joins the Pareto front of every group.

    label: name of the chart, for screen readers. across, up: labels of the axes.
    sign: 1 if a larger y is better, -1 if a smaller one is.
    diagonal: draw the line on which both axes have the same value.
    most: the largest possible y, at which its axis ends.
    """
    low, high = _spread([point.y for point in points])
    top = max(min(high, most), *(point.y for point in points))
    frame = _Frame(_spread([point.x for point in points]), (low, top))
    drawn = []
    if diagonal:
        low, high = max(frame.across[0], frame.up[0]), min(frame.across[1], frame.up[1])
        if low < high:
            ends = (frame.x(low), frame.y(low), frame.x(high), frame.y(high))
            drawn.append(tag("line", class_="diagonal", **dict(zip(("x1", "y1", "x2", "y2"), ends, strict=True))))
    for group, colour in {point.group: point.colour for point in points}.items():
        members = [point for point in points if point.group == group]
        best = [a for a in members if not any(b.x > a.x and sign * b.y > sign * a.y for b in members)]
        front = " ".join(
            f"{'L' if index else 'M'}{frame.x(point.x)},{frame.y(point.y)}"
            for index, point in enumerate(sorted(best, key=lambda point: point.x))
        )
        drawn.append(tag("path", class_=f"curve f{colour % 6}", d=front))
    items = []
    for number, point in enumerate(points, 1):
        colour_class = f"f{point.colour % 6}"
        words = f"{point.name}: {across} {point.x:.4g}, {up} {point.y:.4g}"
        shown = str(number if point.number is None else point.number)
        drawn.append(_point(frame, point.x, point.y, words, f"disc {colour_class}", shown))
        items.append(tag("li", tag("i", shown, class_=f"key round {colour_class}"), point.name))
    return _figure(frame, drawn, label, (across, up), tag("ul", *items, class_="legend numbered"))


def marks(points: Sequence[Point], label: str, across: str, up: str) -> Html:
    """Marks without numbers, for many points; a line joins those that no point beats in both.

    A smaller x is better, and a larger y. label: name of the chart, for screen readers. across, up: labels of the axes.
    """
    frame = _Frame(_spread([point.x for point in points]), _spread([point.y for point in points]))
    best = [a for a in points if not any(b.x <= a.x and b.y >= a.y and (b.x, b.y) != (a.x, a.y) for b in points)]
    line = " ".join(
        f"{'L' if index else 'M'}{frame.x(point.x)},{frame.y(point.y)}"
        for index, point in enumerate(sorted(best, key=lambda point: point.x))
    )
    drawn = [tag("path", class_="curve f1", d=line)]
    for point in points:
        colour = f"f{1 if point in best else point.colour}"
        words = f"{point.name}: {across} {point.x:.4g}, {up} {point.y:.4g}"
        drawn.append(_point(frame, point.x, point.y, words, f"dot {colour}"))
    return _figure(frame, drawn, label, (across, up), Html(""))


def _point(frame: _Frame, x: float, y: float, words: str, looks: str, inside: str = "") -> Html:
    """A mark whose description is shown when it is pointed at, tapped, or reached with the keyboard.

    looks: its CSS classes. inside: text in the mark, such as its number.
    """
    radius = 9 if inside else 3
    circle = tag("circle", cx=frame.x(x), cy=frame.y(y), r=radius)
    number = tag("text", inside, x=frame.x(x), y=frame.y(y) + 4, text_anchor="middle") if inside else Html("")
    focus = {"tabindex": 0, "role": "img", "aria_label": words} if inside else {}
    return tag("g", tag("title", words), circle, number, class_=f"point {looks}", data_words=words, **focus)


@dataclass(frozen=True)
class _Frame:
    """The area of a chart.

    across, up: lowest and highest value of each axis.
    """

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.across
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self.up
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values with a margin on both sides; a single value is in the middle of its range."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers within a range."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * base for factor in (1, 2, 2.5, 5) if factor * base >= raw), 10 * base)
    first = math.ceil(low / step)
    return [multiple * step for multiple in range(first, first + 12) if multiple * step <= high]


def _figure(frame: _Frame, drawn: Sequence[Html], label: str, axes: tuple[str, str], legend: Html) -> Html:
    across, up = axes
    low, left = HEIGHT - BOTTOM, LEFT
    grid = []
    for value in _ticks(*frame.up):
        y = frame.y(value)
        grid.append(tag("line", class_="grid", x1=left, x2=WIDTH - RIGHT, y1=y, y2=y))
        grid.append(tag("text", f"{value:g}", x=left - 6, y=y + 4, text_anchor="end"))
    for value in _ticks(*frame.across):
        x = frame.x(value)
        grid.append(tag("line", class_="grid", x1=x, x2=x, y1=TOP, y2=low))
        grid.append(tag("text", f"{value:g}", x=x, y=low + 16, text_anchor="middle"))
    names = [
        tag("text", across, x=(left + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="axis"),
        tag("text", up, transform=f"translate(13 {(TOP + low) / 2}) rotate(-90)", text_anchor="middle", class_="axis"),
    ]
    svg = tag("svg", *grid, *names, *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="group", aria_label=label)
    output = tag("output", "Point at a mark, or reach it with Tab.", class_="said", aria_live="polite")
    return tag("figure", tag("div", svg, class_="chart"), output, legend)
