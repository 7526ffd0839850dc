"""`forecache calibrate` and `forecache show`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import forecache as fc
from forecache import distributed
from forecache.cli.parameters import MAX_STEPS, AsJson, out_file
from forecache.cli.terminal import app, emit, progress, say
from forecache.io.text import mib
from forecache.parts.gates import god
from forecache.parts.router import is_router
from forecache.report import figures
from forecache.sampling import runs, sources
from forecache.zoo.open import open_source


class KeepName(StrEnum):
    full = "full"
    half = "half"
    channel = "channel"


class RowsName(StrEnum):
    first = "first"
    second = "second"
    all = "all"


@app.command("calibrate")
def calibrate_command(
    model: Annotated[str, typer.Option(help="digits, digits-text, a pipeline folder, or a hub repository.")] = "digits",
    steps: Annotated[
        int, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps; statistics are for runs of this length.")
    ] = 20,
    samples: Annotated[int, typer.Option(min=1, help="Samples, the classes or texts in turn.")] = 256,
    labels: Annotated[str | None, typer.Option(help="These classes instead, one sample each: 207,360.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A file of texts, one a line, for a text-to-image model.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Its scale [1.5 for classes, else the pipeline's].")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Use another one to measure quality.")] = 1000,
    shared_noise: Annotated[bool, typer.Option("--shared-noise", help="One noise for all, as the EOC paper.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples a model call.")] = 32,
    gaps: Annotated[int, typer.Option(min=1, help="Measure changes over 1 to so many steps.")] = 3,
    rows: Annotated[RowsName | None, typer.Option(help="Half of a guidance pair [conditional].")] = None,
    keep: Annotated[KeepName, typer.Option(help="Per token in float32 or 16, or per channel.")] = KeepName.full,
    keep_on: Annotated[str | None, typer.Option(help="Where the means are kept: cpu saves GPU memory.")] = None,
    out: Annotated[Path, out_file("The file; a partial one is continued.")] = Path("statistics.safetensors"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure what a model's features do on average, for GOC's gate, EOC and SmoothCache: one pass without a cache.

    Ctrl-C keeps what was measured, and the same command continues. Several GPUs share the work:
    `torchrun --nproc-per-node 8 -m forecache calibrate ...`, or `accelerate launch -m forecache calibrate ...`.

    Example: `forecache calibrate --model digits --steps 20 --samples 256 --out statistics.safetensors`

    Example: `forecache calibrate --model facebook/DiT-XL-2-256 --steps 20 --samples 1000 --keep-on cpu --out
    dit.safetensors`
    """
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        conditions = runs.conditions(source, samples, labels, prompts)
        grid = fc.grid(source.target, steps)
        need = fc.fit.calibration_bytes(source, steps, batch=min(batch, len(conditions)), gaps=gaps)
        if world.leads:
            say(
                f"{grid.model}: {steps} steps x {len(grid.sites)} sites, {len(conditions)} samples. Holds "
                f"{mib(need.means)} of means and {mib(need.recent)} of features, however many."
            )
        with progress(None, shown=world.leads) as (bar, task):
            try:
                stats = fc.calibrate(
                    source,
                    conditions,
                    num_steps=steps,
                    guidance=sources.own_guidance(source) if guidance is None else guidance,
                    seed=seed,
                    batch=batch,
                    gaps=gaps,
                    rows=rows.value if rows is not None else None,
                    shared_noise=shared_noise,
                    keep_on=keep_on,
                    path=out,
                    on_start=lambda calls: bar.update(task, description="calibrating", total=calls),
                    on_step=lambda _: bar.advance(task),
                )
            except KeyboardInterrupt:
                if out.exists():
                    say(f"{fc.Statistics.load(out).count} samples are kept in {out}: the same command continues.")
                raise
        if not world.leads:
            return
        if keep is not KeepName.full:
            stats = stats.compact(per="token" if keep is KeepName.half else "channel")
            stats.save(out)
        elif stats.means[0].dtype is not torch.float32:
            raise fc.errors.StatisticsError(f"{out} holds compact statistics of this run: delete it to keep full ones.")
        if as_json:
            emit({"statistics": str(out), **_summary(stats)})
        _say_what(stats)
        say(f"Wrote {out} ({mib(out.stat().st_size)}). See it: forecache show {out}")


def _summary(stats: fc.Statistics) -> dict[str, Any]:
    """What statistics are of, for a JSON."""
    names = {"model": stats.origin.model, "guidance": stats.origin.guidance}
    return names | {
        "steps": stats.num_steps,
        "sites": [site.name for site in stats.sites],
        "samples": stats.count,
        "of": len(stats.origin.conditions),
        "resolution": stats.resolution,
    }


def _say_what(stats: fc.Statistics) -> None:
    grid = fc.Grid(stats.num_steps, stats.sites)
    say(f"{stats.count} samples, one mean per {stats.resolution}. N: share of sites with an inverse gradient.")
    say(god(stats).show(grid))


@app.command("show")
def show_command(
    file: Annotated[Path, typer.Argument(help="Statistics or a router (.safetensors), or a plan (.json).")],
    out: Annotated[Path | None, out_file("The picture; beside the file by default (statistics).")] = None,
    gamma: Annotated[float, typer.Option(min=0, max=1, help="god: weight of the position against N.")] = 0.5,
    threshold: Annotated[float, typer.Option(help="god: the gate is open where B is below.")] = 0.6,
    as_json: AsJson = False,
) -> None:
    """Look at a file: a plan or a router as text; statistics as a picture of how features change, with GOC's gate.

    Example: `forecache show plan.json`

    Example: `forecache show statistics.safetensors --gamma 0.5 --threshold 0.45`
    """
    if file.suffix == ".json":
        plan = fc.Plan.load(file)
        drawn = ["".join(cell.sign for cell in row) for row in plan.rows]
        rows = [{"site": site.name, "cells": line} for site, line in zip(plan.grid.sites, drawn, strict=True)]
        _tell(as_json, plan.show(), {"plan": str(file), "provenance": dict(plan.provenance), "rows": rows})
        return
    if is_router(file):
        router = fc.Router.load(file)
        made = {"router": str(file), "provenance": dict(router.provenance), "logits": router.logits.tolist()}
        _tell(as_json, router.show(), made)
        return
    stats = fc.Statistics.load(file)
    gate = god(stats, gamma, threshold)
    origin = stats.origin
    say(
        f"{origin.model}, {stats.num_steps} steps x {len(stats.sites)} sites, guidance {origin.guidance:g}, "
        f"{stats.count} of {len(origin.conditions)} samples, one mean per {stats.resolution}"
    )
    say(gate.show(fc.Grid(stats.num_steps, stats.sites)))
    picture = out or file.with_suffix(".png")
    figures.draw_statistics(stats, gate, picture)
    say(f"Wrote {picture}.")
    if as_json:
        emit({"statistics": str(file), "picture": str(picture), **_summary(stats), "gate": str(gate)})


def _tell(as_json: bool, text: str, document: dict[str, Any]) -> None:
    if as_json:
        emit(document)
    say(text)
