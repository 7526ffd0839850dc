"""`forecache report`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from forecache.cli.parameters import AsJson, out_file
from forecache.cli.terminal import app, emit, say
from forecache.errors import InputError
from forecache.report import html


@app.command("report")
def report_command(
    file: Annotated[Path, typer.Argument(help="A result (.json), statistics (.safetensors), a plan, or a folder.")],
    out: Annotated[Path | None, out_file("The page; report.html beside the file by default.")] = None,
    stats: Annotated[Path | None, typer.Option(help="Statistics to draw beside it, of `forecache calibrate`.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make one HTML page of a result: schedule, images, quality against speed, costs, provenance. It needs no network.

    The file is what `sample`, `bench`, `demo`, `search`, `evaluate --out` or `calibrate` wrote, or a plan.

    Example: `forecache report out/digits/run.json`

    Example: `forecache report out/bench/bench.json --out bench.html`
    """
    target = out or (file if file.is_dir() else file.parent) / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"A report is an HTML page, such as report.html; --out names {target}.")
    data = html.write(file, target, statistics=stats, command=shlex.join(["forecache", *sys.argv[1:]]))
    if as_json:
        emit({"report": str(target), "kind": data.kind, "title": data.title, "bytes": target.stat().st_size})
    say(f"Wrote {target} ({target.stat().st_size / 2**10:.0f} KiB): {data.title}.")
