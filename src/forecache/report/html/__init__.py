"""One HTML file of a result: the schedule cell by cell, curves, quality against speed, images, costs, provenance.

    reports.write("out/digits/run.json", "report.html")

A kind of file is a function that reads it into `ReportData` (kinds.py); a section is a function from data to HTML
(sections.py), which gives nothing where there is nothing that it can use. Whatever comes from a file is text in the
page: elements are made by `markup.tag`, which escapes, and the page's policy lets nothing run but its own script.
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
    """The report of a result file, or of the folder that it lies in, as one HTML file; gives what it was made of.

    statistics: a file of `forecache.calibrate`, whose curves are drawn beside the result. command: how the report was
    made, for the page. Raises InputError, with the kinds that there are, for any other file.
    """
    data = read(Path(source), Path(statistics) if statistics is not None else None)
    with replacing(Path(out), durable=False) as file:
        file.write(page(data, command).encode())
    return data
