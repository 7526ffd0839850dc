"""The Pareto front of a tuning: the best PSNR of every number of computed steps."""

from __future__ import annotations

from forecache.report.html import charts
from forecache.report.html.charts import Point
from forecache.report.html.data import ReportData
from forecache.report.html.markup import Html, tag


def front(data: ReportData) -> Html:
    """Every trial of a tuning, PSNR against computed steps, with the line of the best; empty for other results."""
    if data.kind != "tuning" or len(data.better) != 1:
        return Html("")
    (title,) = data.better
    points = [
        Point(f"{row.picture}, {row.method or row.name}", float(row.picture.count("#")), row.quality[title], "", 0)
        for row in data.rows
        if title in row.quality
    ]
    if len(points) < 2:
        return Html("")
    label = "PSNR against computed steps; to the left and up is better, and the line joins the best"
    note = "A mark is a schedule with its forecast, on the noise that was searched."
    drawn = charts.marks(points, label, "computed steps", title)
    return tag("section", tag("h2", "Pareto front"), tag("p", note, class_="note"), drawn)
