"""A comparison of methods, as `forecache compare-methods` writes it, as the data of a report."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from forecache.bench.comparison import result
from forecache.errors import InputError
from forecache.evaluate.metrics import METRICS
from forecache.report.comparison_figure import GAIN, amplified, pixels_of
from forecache.report.html.data import ErrorTable, Gallery, ReportData, Row, Strip, Tile, mapping, number, text, texts
from forecache.report.html.films import Sheet, chosen_frames, sheet

MAX_BYTES = 40 * 2**20
"""Most bytes of the pictures of a page: browsers struggle with larger ones."""


def read(path: Path, _: Mapping[str, Any]) -> ReportData:
    """The data of a comparison's report. Raises InputError for images that cannot be read."""
    document = result.read(path)
    columns = document["columns"]
    gallery, left_out = _gallery(path.parent, columns)
    names = [name for name in METRICS if any(name in column["quality"] for column in columns)]
    better = {METRICS[name].title: METRICS[name].better for name in names}
    reference = next((column for column in columns if column["name"].startswith("reference, ")), None)
    if reference is not None:
        titles = {f"{METRICS[name].title} to {reference['steps']} steps": METRICS[name].better
                  for name in METRICS if any(name in column["to_reference"] for column in columns)}  # fmt: skip
        better |= titles
    settings = document["settings"]
    more = [f"{left_out} more prompts or seeds are in the folder, and not on this page."] if left_out else []
    return ReportData(
        "methods",
        f"{text(document['model'])}: {len(columns) - 1} ways to sample beside no cache",
        rows=tuple(_row(column, reference) for column in columns),
        better=better,
        left_out=0,
        gallery=gallery,
        errors={text(name): error_table(mapping(table)) for name, table in document["errors"].items()},
        facts={
            "Comparison": {
                "prompts or labels": text(len(settings.get("conditions", ()))),
                **texts({name: settings.get(name) for name in ("seeds", "steps", "guidance", "batch")}),
            },
            "Pipeline": texts(document["pipeline"]),
            "Hardware and versions": texts(document["environment"]),
        },
        notes=(*map(text, result.notes(document)), *more),
        command=text(document["command"]),
    )


def _row(column: Mapping[str, Any], reference: Mapping[str, Any] | None) -> Row:
    quality = {METRICS[name].title: value for name, figure in column["quality"].items()
               if name in METRICS and (value := number(mapping(figure).get("mean"))) is not None}  # fmt: skip
    steps = reference["steps"] if reference is not None else ""
    for name, figure in column["to_reference"].items():
        if name in METRICS and (value := number(mapping(figure).get("mean"))) is not None:
            quality[f"{METRICS[name].title} to {steps} steps"] = value
    ratio, seconds, cost = column["time_ratio"], column["seconds"], column["cost"]
    low, high = number(ratio.get("low")), number(ratio.get("high"))
    spent = number(seconds.get("median"))
    return Row(
        text(column["name"]),
        text(column["method"]),
        text(column["picture"]).split("\n")[0],
        number(cost.get("macs_ratio")),
        number(ratio.get("median")),
        quality,
        number(cost.get("cache_bytes")),
        number(cost.get("macs")),
        more={
            "calls": f"{column['computed_calls']} of {column['steps']}",
            "quartiles of less time": f"{low:.2f}x to {high:.2f}x" if low is not None and high is not None else "",
            "seconds a batch": f"{spent:.3g}" if spent is not None else "",
        },
    )


def error_table(table: Mapping[str, Any]) -> ErrorTable:
    """Errors as a file has them. Raises InputError for a table that is none."""
    sites = tuple(map(text, table.get("sites", ())))
    rows = tuple(tuple(number(value) for value in row) for row in table.get("relative_l2", ()))
    if len(rows) != len(sites) or len({len(row) for row in rows}) > 1:
        raise InputError(
            f"The errors of a comparison need a row of one length for every site: there are {len(sites)} sites, and "
            f"rows of {', '.join(str(len(row)) for row in rows) or 'none'} steps."
        )
    return sites, rows


def _gallery(folder: Path, columns: list[Mapping[str, Any]]) -> tuple[Gallery, int]:
    """The images of all columns, and the number of rows that are left out of the page."""
    strips: list[Strip] = []
    used = 0
    rows = len(columns[0]["images"]) if columns else 0
    for row in range(rows):
        strip = _strip(folder, columns, row)
        used += sum(len(picture.data) for tile in strip.tiles for picture in (tile.image, tile.difference) if picture)
        if strips and used > MAX_BYTES:
            break
        strips.append(strip)
    return Gallery(tuple(strips), GAIN), rows - len(strips)


def _strip(folder: Path, columns: list[Mapping[str, Any]], row: int) -> Strip:
    entry = mapping(columns[0]["images"][row])
    condition, frames = entry.get("condition"), chosen_frames(int(columns[0]["frames"]) or 1)
    words = textwrap.shorten(text(condition), 200, placeholder=" …")
    named = words if isinstance(condition, str) else f"class {words}"
    reference = [_pixels(folder, columns[0], row, frame) for frame in frames]
    tiles = []
    for place, column in enumerate(columns):
        pictures = [_pixels(folder, column, row, frame) for frame in frames] if place else reference
        if pictures[0].shape != reference[0].shape:
            raise InputError(f"The images of {column['name']} have another size than those without a cache.")
        difference: Sheet | None = None
        if place:
            difference = sheet([amplified(*pair) for pair in zip(pictures, reference, strict=True)])
        quality = mapping(mapping(column["images"][row]).get("quality"))
        tiles.append(Tile(text(column["name"]), sheet(pictures), difference, _caption(quality, first=not place)))
    return Strip(f"{named}, seed {text(entry.get('seed'))}", tuple(tiles))


def _caption(quality: Mapping[str, Any], *, first: bool) -> str:
    if first or "psnr" not in quality:
        return ""
    psnr, ssim = number(quality["psnr"]), number(quality.get("ssim"))
    if psnr is None:
        return "equal"
    return f"{psnr:.1f} dB" + (f", SSIM {ssim:.3f}" if ssim is not None else "")


def _pixels(folder: Path, column: Mapping[str, Any], row: int, frame: int) -> np.ndarray[Any, Any]:
    """A picture in the folder of the comparison; files elsewhere are refused."""
    file = mapping(column["images"][row]).get("file")
    if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts or "\\" in file:
        raise InputError(f"A comparison names images in its own folder only, and here {file!r}.")
    return pixels_of(folder, column, row, frame)
