"""`forecache export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import forecache as fc
from forecache.cli.parameters import AsJson, out_file
from forecache.cli.terminal import app, emit, say
from forecache.errors import InputError
from forecache.io import files
from forecache.io.document import refusing
from forecache.plan.export import Format, computed_steps, exported

MAX_BYTES = 2**20


@app.command("export")
def export_command(
    plan: Annotated[Path, typer.Argument(help="A plan file.")],
    format: Annotated[Format, typer.Option(help="What the schedule is for.")] = "steps",
    request: Annotated[
        Path | None,
        typer.Option(help="For sglang-dpcache: a schedule (.json) that SGLang wrote for the request, or its request."),
    ] = None,
    schedule_only: Annotated[
        bool, typer.Option("--schedule-only", help="Write the steps though the plan says more than the format can.")
    ] = False,
    out: Annotated[Path | None, out_file("The file [standard output].")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the schedule of a plan for another engine: cache-dit, SGLang's DPCache, or as a plain list of steps.

    A plan that says more than the format can, such as other steps for every block, is refused.

    Example: `forecache export plan.json --format cache-dit --schedule-only -o cache.yaml`
    """
    document = None
    if request is not None:
        with refusing(request, InputError, "request of SGLang", "Take a schedule that it wrote"):
            document = files.document(request, MAX_BYTES)
            if not isinstance(document, dict):
                raise ValueError("it is no object")
    loaded = fc.Plan.load(plan)
    text = exported(loaded, format, request=document, schedule_only=schedule_only)
    if out is not None:
        files.write(out, text)
    if as_json:
        steps = list(computed_steps(loaded))
        emit({"plan": str(plan), "format": format, "file": out and str(out), "computed_steps": steps, "text": text})
    say(f"Wrote {out}." if out is not None else text.rstrip("\n"))
