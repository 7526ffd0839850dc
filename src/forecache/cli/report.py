"""`forecache report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forecache.cli.parameters import AsJson, out_file
from forecache.cli.terminal import app, emit, say, typed_command
from forecache.errors import InputError
from forecache.report import html


@app.command("report")
def report_command(
    file: Annotated[
        Path, typer.Argument(help="A result (.json), statistics (.safetensors), a plan, or a result's folder.")
    ],
    out: Annotated[Path | None, out_file("The page [report.html beside the file].")] = None,
    stats: Annotated[
        Path | None, typer.Option(help="Statistics of `forecache calibrate`, drawn beside the result.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one HTML page of a result: schedule, images, quality and speed, costs, provenance. It needs no network.

    The file is a plan, or a result of `sample`, `bench`, `demo`, `search`, `reproduce`, `evaluate --out` or
    `calibrate`.

    Example: `forecache report out/digits/run.json`

    Example: `forecache report out/bench --out bench.html`
    """
    page = out or (file if file.is_dir() else file.parent) / "report.html"
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"A report is an HTML page, such as report.html; --out names {page}.")
    data = html.write(file, page, statistics=stats, command=typed_command())
    if as_json:
        emit({"report": str(page), "kind": data.kind, "title": data.title, "bytes": page.stat().st_size})
    say(f"Wrote {page} ({page.stat().st_size / 2**10:.0f} KiB): {data.title}.")
