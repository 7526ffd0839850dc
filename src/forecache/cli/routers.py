"""`forecache import-router` and `forecache train-router`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache import distributed
from forecache.cli.parameters import DEFAULT_MODEL, MAX_STEPS, AsJson, Device, Model, Threads, out_file
from forecache.cli.terminal import app, emit, print_table, progress, results_table, resumable, say
from forecache.fit.routers import Progress
from forecache.zoo.open import open_source

Threshold = Annotated[
    float, typer.Option(min=0, max=0.999, help="A site is computed where its probability is above this.")
]


@app.command("import-router")
def import_router(
    path: Annotated[Path, typer.Argument(metavar="IN.pt", help="A router as the authors of the paper publish it.")],
    out: Annotated[Path, out_file("The router as safetensors, which l2c reads.")],
    threshold: Threshold = 0.1,
    as_json: AsJson = False,
) -> None:
    """Convert a published Learning-to-Cache router without executing anything in it, and print what it skips.

    Example: `forecache import-router ddim20_router.pt --out out/router.safetensors`
    """
    router = fc.Router.from_published(path)
    router.save(out)
    if as_json:
        emit(_document(router, out, threshold))
    print_table(_table(router, threshold))
    say(f"{_level(router, threshold)}\nWrote {out}; in Python: forecache.l2c({str(out)!r}, threshold={threshold:g})")


@app.command("train-router")
def train_router(
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, out_file("The router as safetensors.")] = Path("out/router.safetensors"),
    steps: Annotated[int, typer.Option(min=2, max=MAX_STEPS, help="Sampling steps that the router is for.")] = 20,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 1.5,
    iterations: Annotated[int, typer.Option(min=1, help="Sampling runs to learn from.")] = 60,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a run, on every process.")] = 4,
    lr: Annotated[
        float, typer.Option(help="Learning rate of AdamW; the paper's 0.001 needs thousands of iterations.")
    ] = 0.2,
    lam: Annotated[float, typer.Option(help="Penalty on every computed site; a larger one skips more.")] = 5e-5,
    threshold: Threshold = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise: the same seed gives the same router.")] = 0,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16; below float32 the loss loses precision.")
    ] = "float32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Learn which attention and MLP branches the model's sampling can skip (Learning-to-Cache).

    The same command continues an interrupted training; with more --iterations it continues a finished one. Every
    process of `torchrun` or `accelerate launch` samples runs of its own.

    Example: `forecache train-router --model digits --steps 20 --lam 5e-5 --out out/router.safetensors`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = out.with_name(out.stem + ".training.safetensors")
    with distributed.started() as world:
        source = open_source(model, device, dtype)
        with resumable(checkpoint, leads=world.leads), progress(iterations, shown=world.leads) as (bar, task):

            def on_iteration(training: Progress) -> None:
                description = f"loss {training.loss:.3g}, {training.level:.1%} skipped"
                bar.update(task, completed=training.iteration, description=description)

            router = fc.train_router(
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
                on_iteration=on_iteration,
            )
        if world.leads:
            router.save(out)
            if as_json:
                emit(_document(router, out, threshold))
            origin = router.provenance
            say(
                f"{router.show(threshold)}\n"
                f"{origin['iterations']} iterations in {origin['seconds']} s, loss {origin['loss']} "
                f"(MSE {origin['error']})\n"
                f"{_level(router, threshold)}\n"
                f"Wrote {out}. To continue the training, keep {checkpoint} and ask for more --iterations."
            )


def _document(router: fc.Router, out: Path, threshold: float) -> dict[str, Any]:
    counts = {"skipped": int(router.skips(threshold).sum()), "cells": router.logits.numel()}
    return {"router": str(out), "threshold": threshold, **counts, "provenance": dict(router.provenance)}


def _table(router: fc.Router, threshold: float) -> Table:
    """The number of skipped sites of each kind in every call that may skip any."""
    counts = router.skipped_by_kind(threshold)
    table = results_table("skipped in each call")
    for name in ("call", *counts, "all"):
        table.add_column(name, justify="right")
    for step in router.skippable:
        row = [by_step[step] for by_step in counts.values()]
        table.add_row(str(step), *map(str, row), str(sum(row)))
    totals = [sum(by_step) for by_step in counts.values()]
    table.add_row("total", *map(str, totals), str(sum(totals)))
    return table


def _level(router: fc.Router, threshold: float) -> str:
    skipped, cells = int(router.skips(threshold).sum()), router.logits.numel()
    return f"{skipped} of {cells} cells are skipped at threshold {threshold:g}: caching level {skipped / cells:.2%}"
