"""The sections of a report: each shows one part of the data, and is empty if that part is missing."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from forecache.evaluate.metrics import METRICS
from forecache.io.text import MIB
from forecache.parts.grid import Cell
from forecache.parts.statistics import Statistics
from forecache.plan.plan import Plan
from forecache.report.html import charts
from forecache.report.html.charts import Cells, Point
from forecache.report.html.data import Image, ReportData, Row
from forecache.report.html.films import player
from forecache.report.html.front import front
from forecache.report.html.gallery import gallery
from forecache.report.html.markup import Html, join, tag
from forecache.report.html.step_errors import step_errors

Section = Callable[[ReportData], Html]
CLASSES = {"#": "computed", ".": "reused", "~": "forecast", "+": "corrected", "o": "partial"}
MEANINGS = {
    "computed": "computed",
    "reused": "reused unchanged",
    "forecast": "forecast from earlier features",
    "corrected": "corrected by calibration",
    "partial": "some tokens computed",
    "unknown": "not known",
}
MAX_CELLS = 40_000
MAX_LINES = 60


def titled(title: str, *parts: Html) -> Html:
    """A section with a heading; empty if its parts are empty."""
    whole = join(*parts)
    return tag("section", tag("h2", title), whole) if whole else Html("")


# ---- schedules ------------------------------------------------------------------------------------------------------


def schedule(data: ReportData) -> Html:
    """The schedule of a plan, steps x sites, or the schedules of a comparison, steps x plans."""
    if data.plan is not None:
        return titled("Schedule", _of_plan(data.plan))
    scheduled = [row for row in data.rows if row.picture]
    drawn = scheduled[:MAX_LINES]
    steps = max((len(row.picture) for row in drawn), default=0)
    if not drawn or steps > 2000:
        return Html("")
    classes = [[CLASSES.get(sign, "unknown") for sign in row.picture.ljust(steps)] for row in drawn]
    words = [[f"step {step}: {MEANINGS[name]}" for step, name in enumerate(row)] for row in classes]
    names = [f"{row.name} {_score(row)}" if data.kind == "search" else row.name for row in drawn]
    line = "a pattern, by rank, with its score" if data.kind == "search" else "a plan, as most of its sites run"
    cut = f"The first {len(drawn)} are shown. " if len(drawn) < len(scheduled) else ""
    note = tag("p", f"{cut}A line is {line}; step 0 is the noisiest.", class_="note")
    return titled("Schedules", note, charts.heat_map(Cells(names, classes, words), "Schedules", _legend(classes)))


def _of_plan(plan: Plan) -> Html:
    names, rows = _lines(plan)
    classes = [[CLASSES[cell.sign] for cell in row] for row in rows]
    words = [[f"step {step}: {_words(cell)}" for step, cell in enumerate(row)] for row in rows]
    size = plan.grid.size
    note = f"{size}, {plan.computed_share:.1%} computed. Step 0 is the noisiest."
    text = tag("details", tag("summary", "The same as text"), tag("pre", _text(plan), tabindex=0))
    return join(
        tag("p", note, class_="note"), charts.heat_map(Cells(names, classes, words), "Schedule", _legend(classes)), text
    )


def _lines(plan: Plan) -> tuple[list[str], list[tuple[Cell, ...]]]:
    """The name and the cells of every line: one line per site; in a very large plan, one per distinct row of cells."""
    if len(plan.rows) * plan.num_steps <= MAX_CELLS:
        return [site.name for site in plan.grid.sites], list(plan.rows)
    groups: dict[tuple[Cell, ...], list[str]] = {}
    for site, row in zip(plan.grid.sites, plan.rows, strict=True):
        groups.setdefault(row, []).append(site.name)
    drawn = list(groups.items())[: max(1, MAX_CELLS // plan.num_steps)]
    return [f"{sites[0]} and {len(sites) - 1} more" for _, sites in drawn], [row for row, _ in drawn]


def _text(plan: Plan) -> str:
    full = plan.show()
    return full if len(full) < 200_000 else plan.picture()[:200_000]


def _words(cell: Cell) -> str:
    """A cell in words, such as ``reused: step 4`` or ``forecast: 1.8 x step 4 - 0.8 x step 2``."""
    if not cell.reads:
        return "computed"
    terms = [f"{'-' if weight < 0 else '+'} {abs(weight):g} x step {step}" for step, weight in cell.reads[:8]]
    summed = " ".join(terms).removeprefix("+ ") + (" ..." if len(cell.reads) > 8 else "")
    summed = summed.removeprefix("1 x ") if cell.is_reuse else summed
    parts = [f"{'reused' if cell.is_reuse else 'forecast'}: {summed}"]
    if cell.constants:
        parts.append(f"corrected by {' and '.join(cell.constants)}")
    if (tokens := cell.tokens) is not None:
        by = f"{tokens.importance} of {tokens.site}" if tokens.site else str(tokens.importance)
        parts.append(f"{tokens.share:.0%} of the tokens computed, by {by}")
    return "; ".join(parts)


def _legend(classes: Sequence[Sequence[str]]) -> dict[str, str]:
    used = {name for row in classes for name in row}
    return {name: meaning for name, meaning in MEANINGS.items() if name in used}


def _score(row: Row) -> str:
    return " ".join(f"{value:.4g}" for value in row.quality.values())


# ---- features -------------------------------------------------------------------------------------------------------


def features(data: ReportData) -> Html:
    """The change of features by kind of site and cell by cell, and the share of inverse gradients."""
    stats = data.statistics
    if stats is None or stats.num_steps < 2:
        return Html("")
    kinds = list(dict.fromkeys(site.kind for site in stats.sites))
    change_TS = stats.changes[:, :, 0].double()
    lines = {}
    for kind in kinds[:6]:
        columns = [index for index, site in enumerate(stats.sites) if site.kind == kind]
        lines[kind] = change_TS[:, columns].mean(1).tolist()
    lines["N: share of inverse gradients"] = list(stats.inverse_shares)
    chart = charts.curves(lines, "Change of features by step", "step (0 is the noisiest)", "relative change; share")
    note = "Mean relative L1 change of a feature since the step before, by kind of site."
    return titled("How features change", tag("p", note, class_="note"), chart, _changes(stats))


def _changes(stats: Statistics) -> Html:
    """The change of the feature in every cell, in ten shades up to the 90th percentile."""
    change = stats.changes[1:, :, 0].double()
    if change.numel() > MAX_CELLS:
        return Html("")
    ordered = change.flatten().sort().values
    top = float(ordered[min(len(ordered) - 1, math.floor(0.9 * len(ordered)))]) or 1.0
    table = [[0.0, *row] for row in change.T.tolist()]
    classes = [[f"shade{min(9, max(0, int(10 * value / top)))}" for value in row] for row in table]
    words = [
        [f"step {step}: {f'changes by {value:.2%}' if step else 'the first step'}" for step, value in enumerate(row)]
        for row in table
    ]
    names = [site.name for site in stats.sites]
    legend = {"shade0": "no change", "shade9": f"{top:.1%} and more"}
    return charts.heat_map(Cells(names, classes, words), "Change of every feature", legend)


# ---- comparisons ----------------------------------------------------------------------------------------------------


def quality(data: ReportData) -> Html:
    """Quality against speed, one chart per metric; time against MACs if there is no metric."""
    timed = any(row.time_ratio is not None for row in data.rows)
    speed = "times less time" if timed else "times fewer MACs"
    drawn = []
    for name, better in data.better.items():
        points = [
            Point(row.name, x, row.quality[name], *_group(row, data), number)
            for number, row in enumerate(data.rows[:MAX_LINES], 1)
            if name in row.quality and (x := row.time_ratio if timed else row.macs_ratio) is not None
        ]
        sign, arrow = (1, "up") if better == "higher" else (-1, "down")
        if len(points) > 1 and len({point.x for point in points}) == 1:  # a search: every pattern computes as much
            ranked = [replace(point, x=float(rank), name=_pattern(data, point)) for rank, point in enumerate(points, 1)]
            label = f"{name} by rank; {arrow} is better"
            drawn += [tag("h3", label), charts.scatter(ranked, label, "rank", name, sign=sign, most=_most(name))]
        elif len(points) > 1:
            label = f"{name} against speed; to the right and {arrow} is better"
            drawn += [tag("h3", label), charts.scatter(points, label, speed, name, sign=sign, most=_most(name))]
    if not drawn:
        points = [
            Point(row.name, row.macs_ratio, row.time_ratio, *_group(row, data), number)
            for number, row in enumerate(data.rows[:MAX_LINES], 1)
            if row.macs_ratio is not None and row.time_ratio is not None
        ]
        if len(points) > 1:
            label = "Less time against fewer MACs; on the line, time falls as MACs do"
            axes = ("times fewer MACs", "times less time")
            drawn = [tag("h3", label), charts.scatter(points, label, *axes, diagonal=True)]
    return titled("Quality and speed", *drawn)


def _pattern(data: ReportData, point: Point) -> str:
    """The pattern of a point's row; its name where it has none."""
    row = data.rows[(point.number or 1) - 1]
    return row.picture or row.name


def _most(title: str) -> float:
    """The largest possible value of a metric, by its title in a report."""
    bounds = {metric.title: metric.most for metric in METRICS.values()} | {"class accuracy": 1.0}
    return bounds.get(title, math.inf)


def _group(row: Row, data: ReportData) -> tuple[str, int]:
    """A row's group and colour: names of one group share their first word, and their colour in every chart."""
    names = list(dict.fromkeys(_family(other.name) for other in data.rows))
    return ("patterns", 0) if data.kind == "search" else (_family(row.name), names.index(_family(row.name)))


def _family(name: str) -> str:
    return name.replace("-", " ").partition(" ")[0].rstrip(":")


def comparison(data: ReportData) -> Html:
    """The rows of a comparison as a table."""
    if not data.rows:
        return Html("")
    pictures = ["" if data.kind == "methods" else row.picture for row in data.rows]  # they have a section of their own
    columns: dict[str, list[str]] = {
        "": [row.name for row in data.rows],
        "fewer MACs": [_format(row.macs_ratio, ".2f", "x") for row in data.rows],
        "less time": [_format(row.time_ratio, ".2f", "x") for row in data.rows],
    }
    for name, better in data.better.items():
        columns[f"{name} ({better} is better)"] = [_format(row.quality.get(name), ".4g") for row in data.rows]
    for title in dict.fromkeys(title for row in data.rows for title in row.more):
        columns[title] = [row.more.get(title, "") for row in data.rows]
    caches = [row.cache_bytes / MIB if row.cache_bytes is not None else None for row in data.rows]
    columns["cache, MiB"] = [_format(value, ".2f") for value in caches]
    columns["schedule"] = pictures  # the widest one last, so that a narrow screen shows the figures
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    table = _table(list(filled), list(zip(*filled.values(), strict=True)))
    note = f"{data.left_out} more rows are left out." if data.left_out else ""
    return titled("Table", table, tag("p", note, class_="note"))


def evaluation(data: ReportData) -> Html:
    """The figures of an evaluation with their intervals."""
    if not data.figures:
        return Html("")
    names = ["metric", "value", "95 % interval", "samples", "resamples"]
    notes = [tag("p", note, class_="note") for note in data.notes]
    return titled("Figures", _table(names, data.figures), *notes)


def _format(value: float | None, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if value is not None else ""


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    lines = []
    for first, *rest in rows:
        cells = [
            tag("td", tag("code", cell) if names[column] == "schedule" else cell) for column, cell in enumerate(rest, 1)
        ]
        lines.append(tag("tr", tag("th", first, scope="row"), *cells))
    whole = tag("table", tag("thead", head), tag("tbody", *lines))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label="Table")


# ---- images ---------------------------------------------------------------------------------------------------------


def images(data: ReportData) -> Html:
    """The samples; a slider blends from the uncached ones to them, where those were sampled."""
    if not data.images:
        return Html("")
    pairs = any(image.uncached is not None or image.uncached_film is not None for image in data.images)
    label = "All images: share without a cache"
    slider = [tag("label", label, _slider(label, "all"), class_="note")] if pairs else []
    note = "Left of the line: without a cache; right of it: with the plan." if pairs else ""
    cut = f" {data.left_out} more images are left out." if data.left_out else ""
    frames = max((image.film.frames for image in data.images if image.film is not None), default=1)
    slider = [*([player(frames)] if frames > 1 else []), *slider]
    grid = tag("div", *(_image(image, index) for index, image in enumerate(data.images)), class_="grid")
    return titled("Images", tag("p", note + cut, class_="note"), *slider, grid)


def _image(image: Image, index: int) -> Html:
    name = f"Image {index}: {image.name}"
    described = name if image.uncached is None and image.uncached_film is None else f"{name}, with the plan"
    layers = [_png(image.png, described, "with") if image.film is None else image.film.element(described, "with")]
    controls = []
    if image.uncached_film is not None:
        layers.append(image.uncached_film.element(f"{name}, without a cache", "without"))
        controls.append(_slider(f"{name}: share without a cache"))
    elif image.uncached is not None:
        layers.append(_png(image.uncached, f"{name}, without a cache", "without"))
        controls.append(_slider(f"{name}: share without a cache"))
    has_pair = image.uncached is not None or image.uncached_film is not None
    psnr = f"{image.psnr:.1f} dB" if image.psnr is not None else "equal" if has_pair else ""
    psnr += f", SSIM {image.ssim:.3f}" if image.ssim is not None and image.psnr is not None else ""
    caption = tag("figcaption", tag("span", image.name), " ", tag("b", psnr))
    return tag("figure", tag("div", *layers, class_="pair"), *controls, caption, class_="sample")


def _png(png: bytes, description: str, css_class: str) -> Html:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag("img", src=source, alt=description, class_=css_class)


def _slider(label: str, css_class: str = "") -> Html:
    classes = f"slider {css_class}".strip()
    return tag("input", type="range", min=0, max=100, value=50, aria_label=label, class_=classes)


# ---- costs and provenance -------------------------------------------------------------------------------------------


def costs(data: ReportData) -> Html:
    """The cost of the result."""
    return titled("Cost", _facts(data.costs)) if data.costs else Html("")


def provenance(data: ReportData) -> Html:
    """Settings, plan, model, hardware and versions, and the command that made the result."""
    parts = [join(tag("h3", title), _facts(facts)) for title, facts in data.facts.items() if facts]
    if data.command:
        parts.insert(0, join(tag("h3", "Command that reproduces this result"), tag("pre", data.command, tabindex=0)))
    return titled("Provenance", *parts)


def _facts(facts: Mapping[str, str]) -> Html:
    """Names with their values; a long value has a line of its own."""
    lines = [
        tag("div", tag("dt", name), tag("dd", value), class_="long" if len(value) > 36 else None)
        for name, value in facts.items()
    ]
    return tag("dl", *lines)


SECTIONS: tuple[Section, ...] = (
    gallery, images, costs, quality, comparison, front, evaluation, schedule, step_errors, features, provenance,
)  # fmt: skip
"""In the order of the page."""
