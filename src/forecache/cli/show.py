"""`forecache show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import forecache as fc
from forecache.cli.calibrate import summary
from forecache.cli.parameters import AsJson, out_file
from forecache.cli.terminal import app, emit, say
from forecache.methods.goc import gate_of
from forecache.parts import patterns
from forecache.parts.grid import size_of
from forecache.parts.router import is_router
from forecache.report import figures


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="Statistics or a router (.safetensors), or a plan (.json).")],
    out: Annotated[Path | None, out_file("The picture of statistics [beside the file, with the ending .png].")] = None,
    gamma: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="GOC's gate: weight of the position against the share N [as proposed]."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="GOC's gate: open where B is below it [as the statistics propose].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a file: a plan or a router as text; statistics as a picture of how features change, with GOC's gate.

    Example: `forecache show plan.json`

    Example: `forecache show statistics.safetensors --gamma 0.5 --threshold 0.45`
    """
    if file.suffix == ".json":
        text, document = _plan(file)
    elif is_router(file):
        text, document = _router(file)
    else:
        text, document = _statistics(file, out or file.with_suffix(".png"), gamma, threshold)
    if as_json:
        emit(document)
    say(text)


def _plan(file: Path) -> tuple[str, dict[str, Any]]:
    plan = fc.Plan.load(file)
    rows = [
        {"site": site.name, "cells": patterns.line(cells)}
        for site, cells in zip(plan.grid.sites, plan.rows, strict=True)
    ]
    return plan.show(), {"plan": str(file), "provenance": dict(plan.provenance), "rows": rows}


def _router(file: Path) -> tuple[str, dict[str, Any]]:
    router = fc.Router.load(file)
    document = {"router": str(file), "provenance": dict(router.provenance), "logits": router.logits.tolist()}
    return router.show(), document


def _statistics(file: Path, picture: Path, gamma: float | None, threshold: float | None) -> tuple[str, dict[str, Any]]:
    """Draws the picture, too."""
    stats = fc.Statistics.load(file)
    gate, origin = gate_of(stats, gamma, threshold), stats.origin
    figures.draw_statistics(stats, gate, picture)
    text = (
        f"{origin.model}, {size_of(stats.num_steps, stats.sites)}, guidance {origin.guidance:g}, "
        f"{stats.count} of {len(origin.conditions)} samples, one mean per {stats.resolution}\n"
        f"{gate.show(fc.Grid(stats.num_steps, stats.sites))}\n"
        f"Wrote {picture}."
    )
    return text, {"statistics": str(file), "picture": str(picture), **summary(stats), "gate": str(gate)}
