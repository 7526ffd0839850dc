"""The commands for routers: reading published ones, training one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache import distributed
from forecache.cli.parameters import MAX_STEPS, AsJson, out_file
from forecache.cli.terminal import app, console, emit, progress, say
from forecache.fit.routers import Progress
from forecache.zoo.open import open_source

Threshold = Annotated[float, typer.Option(min=0, max=0.999, help="Compute where the router's probability is over it.")]


@app.command("import-router")
def import_router(
    path: Annotated[Path, typer.Argument(metavar="IN.pt", help="A router as the authors of the paper publish it.")],
    out: Annotated[Path, out_file("The router as safetensors, which l2c reads.")],
    threshold: Threshold = 0.1,
    as_json: AsJson = False,
) -> None:
    """Read a published Learning-to-Cache router without executing anything in it, and say what it skips.

    Example: `forecache import-router ddim20_router.pt --out out/router.safetensors`
    """
    found = fc.Router.from_published(path)
    found.save(out)
    if as_json:
        emit(_document(found, out, threshold))
    console.print(_table(found, threshold))
    say(f"{_level(found, threshold)}\nWrote {out}; in Python: forecache.l2c({str(out)!r}, threshold={threshold:g})")


@app.command("train-router")
def train_router(
    model: Annotated[str, typer.Option(help="digits, a pipeline folder, or a hub repository.")] = "digits",
    out: Annotated[Path, out_file("The router as safetensors.")] = Path("out/router.safetensors"),
    steps: Annotated[int, typer.Option(min=2, max=MAX_STEPS, help="Sampling steps that the router is for.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 1.5,
    iterations: Annotated[int, typer.Option(min=1, help="Sampling runs to learn from.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Samples of one run, on every process.")] = 4,
    lr: Annotated[float, typer.Option(help="AdamW; the paper's 0.001 needs thousands of iterations.")] = 0.2,
    lam: Annotated[float, typer.Option(help="What computing a site costs; more skips more.")] = 5e-5,
    threshold: Threshold = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same router.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; less than float32 blurs the loss.")
    ] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Learn which attentions and MLPs the model's sampling can do without (Learning-to-Cache).

    Interrupted, the same command goes on where it stopped; with more --iterations a finished training goes on. Every
    process of `torchrun` or `accelerate launch` samples runs of its own.

    Example: `forecache train-router --model digits --steps 20 --lam 5e-5 --out out/router.safetensors`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = out.with_name(out.stem + ".training.safetensors")
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        with progress(iterations, shown=world.leads) as (bar, task):

            def advance(now: Progress) -> None:
                words = f"loss {now.loss:.3g}, {now.level:.1%} skipped"
                bar.update(task, completed=now.iteration, description=words)

            found = fc.train_router(
                source,
                num_steps=steps,
                iterations=iterations,
                lr=lr,
                lam=lam,
                batch=batch,
                guidance=guidance,
                seed=seed,
                threshold=threshold,
                checkpoint=checkpoint,
                on_iteration=advance,
            )
        if world.leads:
            found.save(out)
            if as_json:
                emit(_document(found, out, threshold))
            say(found.show(threshold))
            made = found.provenance
            say(f"{made['iterations']} iterations in {made['seconds']} s, loss {made['loss']} (MSE {made['error']})")
            say(f"{_level(found, threshold)}\nWrote {out}; {checkpoint} lets the training go on.")


def _document(found: fc.Router, out: Path, threshold: float) -> dict[str, Any]:
    counts = {"skipped": int(found.skips(threshold).sum()), "cells": found.logits.numel()}
    return {"router": str(out), "threshold": threshold, **counts, "provenance": dict(found.provenance)}


def _table(found: fc.Router, threshold: float) -> Table:
    """How many sites of every kind each call skips; the calls that always compute are left out."""
    counts = found.skipped_by_kind(threshold)
    table = Table(title="skipped in each call", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("call", *counts, "all"):
        table.add_column(name, justify="right")
    for step in found.skippable:
        row = [by_step[step] for by_step in counts.values()]
        table.add_row(str(step), *map(str, row), str(sum(row)))
    totals = [sum(by_step) for by_step in counts.values()]
    table.add_row("total", *map(str, totals), str(sum(totals)))
    return table


def _level(found: fc.Router, threshold: float) -> str:
    skipped, cells = int(found.skips(threshold).sum()), found.logits.numel()
    return f"{skipped} of {cells} cells are skipped at threshold {threshold:g}: caching level {skipped / cells:.2%}"
