"""A result as one HTML page: the schedule cell by cell, curves, quality and speed, images, costs, provenance.

    html.write("out/digits/run.json", "report.html")

A kind (kinds.py) reads one sort of file into `ReportData` (data.py). A section (sections.py) turns the data into HTML,
or into nothing if its data is missing. Text of a file cannot become markup: `markup.tag` escapes it, and the page's
content security policy runs only the page's own script.
"""

from __future__ import annotations

import os
from pathlib import Path

from forecache.io.files import replacing
from forecache.report.html.data import Image, ReportData, Row
from forecache.report.html.kinds import KINDS, Kind, read
from forecache.report.html.page import page

__all__ = ["KINDS", "Image", "Kind", "ReportData", "Row", "page", "read", "write"]


def write(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    statistics: str | os.PathLike[str] | None = None,
    command: str = "",
) -> ReportData:
    """Write the report of a result file, or of its folder, as one HTML file; returns the report's data.

    statistics: a file of `forecache.calibrate`, drawn beside the result.
    command: the command that made the report, for its last line.

    Raises InputError, which lists the kinds of results, for any other file.
    """
    data = read(Path(source), Path(statistics) if statistics is not None else None)
    with replacing(Path(out), durable=False) as file:
        file.write(page(data, command).encode())
    return data
