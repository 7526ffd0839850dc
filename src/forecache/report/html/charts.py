"""Pictures as SVG and HTML: a table of cells, curves, and points. What each part says is in the page, for any reader.

Colours come from the page's style sheet, which knows light and dark.
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
    """A table to be drawn. names: of the lines. classes, words: of every cell, line by line; words say what it is."""

    names: Sequence[str]
    classes: Sequence[Sequence[str]]
    words: Sequence[Sequence[str]]


def heat_map(cells: Cells, label: str, legend: Mapping[str, str]) -> Html:
    """Lines x steps as coloured cells; pointing, tapping or the arrow keys say what a cell does, below the picture.

    legend: class -> what it means.
    """
    lines, steps = len(cells.names), len(cells.classes[0])
    height = 16 if lines <= 40 else 9 if lines <= 120 else 6
    rects = [_run(row, place) for place, row in enumerate(cells.classes)]
    svg = tag(
        "svg", *rects, tag("rect", class_="mark", x=0, y=0, width=1, height=1),
        viewBox=f"0 0 {steps} {lines}", preserveAspectRatio="none", style=f"height:{height * lines}px",
        aria_hidden="true",
    )  # fmt: skip
    every = max(1, math.ceil(14 / height))
    names = [tag("span", name if place % every == 0 else "", title=name) for place, name in enumerate(cells.names)]
    column = tag("div", *names, class_="names", style=f"line-height:{height}px", aria_hidden="true")
    apart = max(1, math.ceil(steps / 10))
    ticks = [tag("span", str(step), style=f"left:{100 * (step + 0.5) / steps:.3f}%") for step in range(0, steps, apart)]
    known = list(dict.fromkeys(word for row in cells.words for word in row))
    places = {word: number for number, word in enumerate(known)}
    data = {"steps": steps, "names": list(cells.names), "known": known}
    data |= {"words": [[places[word] for word in row] for row in cells.words]}
    area = tag(
        "div", svg, tag("div", *ticks, class_="ticks", aria_hidden="true"),
        class_="cells", tabindex=0, role="application", aria_label=f"{label}. Arrow keys move from cell to cell.",
        data_cells=json.dumps(data),
    )  # fmt: skip
    said = tag("output", "Point at a cell, or move with the arrow keys.", class_="said", aria_live="polite")
    keys = [tag("li", tag("i", class_=f"key {name}"), meaning) for name, meaning in legend.items()]
    return tag("figure", tag("div", column, area, class_="map"), said, tag("ul", *keys, class_="legend"))


def _run(row: Sequence[str], place: int) -> Html:
    """One rectangle for neighbours that look alike."""
    found, start = [], 0
    for step in range(1, len(row) + 1):
        if step == len(row) or row[step] != row[start]:
            found.append(tag("rect", class_=f"cell {row[start]}", x=start, y=place, width=step - start, height=1))
            start = step
    return join(*found)


def curves(lines: Mapping[str, Sequence[float]], label: str, across: str, up: str) -> Html:
    """Curves over steps, each with a name beside its colour."""
    most = max((value for line in lines.values() for value in line), default=1.0)
    count = max(map(len, lines.values()))
    frame = _Frame((0.0, max(1.0, count - 1.0)), (0.0, most or 1.0))
    drawn = []
    for place, (name, line) in enumerate(lines.items()):
        dots = " ".join(f"{'M' if not step else 'L'}{frame.x(step)},{frame.y(y)}" for step, y in enumerate(line))
        drawn.append(tag("path", class_=f"curve f{place % 6}", d=dots))
        drawn += [
            _point(frame, step, y, f"{name}, step {step}: {y:.4g}", f"dot f{place % 6}") for step, y in enumerate(line)
        ]
    keys = [tag("li", tag("i", class_=f"key f{place % 6}"), name) for place, name in enumerate(lines)]
    return _figure(frame, drawn, label, (across, up), tag("ul", *keys, class_="legend"))


@dataclass(frozen=True)
class Point:
    """A point of a comparison. group: has a colour, one of six, and a line through the best of its points."""

    name: str
    x: float
    y: float
    group: str
    colour: int


def scatter(
    points: Sequence[Point], label: str, across: str, up: str, *, sign: int = 1, diagonal: bool = False
) -> Html:
    """Points with numbers, which a list below explains; a line joins those of a group that no other beats in both.

    sign: 1 where more is better upwards, -1 where less is. diagonal: where both axes say the same.
    """
    frame = _Frame(_spread([each.x for each in points]), _spread([each.y for each in points]))
    drawn = []
    if diagonal:
        low, high = max(frame.across[0], frame.up[0]), min(frame.across[1], frame.up[1])
        if low < high:
            ends = (frame.x(low), frame.y(low), frame.x(high), frame.y(high))
            drawn.append(tag("line", class_="diagonal", **dict(zip(("x1", "y1", "x2", "y2"), ends, strict=True))))
    for group, colour in {each.group: each.colour for each in points}.items():
        members = [each for each in points if each.group == group]
        best = [a for a in members if not any(b.x > a.x and sign * b.y > sign * a.y for b in members)]
        front = " ".join(
            f"{'M' if not number else 'L'}{frame.x(each.x)},{frame.y(each.y)}"
            for number, each in enumerate(sorted(best, key=lambda each: each.x))
        )
        drawn.append(tag("path", class_=f"curve f{colour % 6}", d=front))
    items = []
    for number, each in enumerate(points, 1):
        colour = f"f{each.colour % 6}"
        words = f"{each.name}: {across} {each.x:.4g}, {up} {each.y:.4g}"
        drawn.append(_point(frame, each.x, each.y, words, f"disc {colour}", str(number)))
        items.append(tag("li", tag("i", str(number), class_=f"key round {colour}"), each.name))
    return _figure(frame, drawn, label, (across, up), tag("ul", *items, class_="legend numbered"))


def _point(frame: _Frame, x: float, y: float, words: str, looks: str, inside: str = "") -> Html:
    """A point that says what it is when it is pointed at, tapped or reached with the keyboard."""
    radius = 9 if inside else 3
    circle = tag("circle", cx=frame.x(x), cy=frame.y(y), r=radius)
    written = tag("text", inside, x=frame.x(x), y=frame.y(y) + 4, text_anchor="middle") if inside else Html("")
    reach = {"tabindex": 0, "role": "img", "aria_label": words} if inside else {}
    return tag("g", tag("title", words), circle, written, class_=f"point {looks}", data_words=words, **reach)


@dataclass(frozen=True)
class _Frame:
    """Where values lie in the picture."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.across
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self.up
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 2)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The range with room on both sides; a single value stands in the middle of one."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, four to eight of them."""
    raw = (high - low) / 5
    base = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * base for factor in (1, 2, 2.5, 5) if factor * base >= raw), 10 * base)
    first = math.ceil(low / step)
    return [number * step for number in range(first, first + 12) if number * step <= high]


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
    said = tag("output", "Point at a mark, or reach it with Tab.", class_="said", aria_live="polite")
    return tag("figure", tag("div", svg, class_="chart"), said, legend)
