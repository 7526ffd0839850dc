"""`forecache bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import forecache as fc
from forecache.bench import speed
from forecache.bench.subjects import PRESETS, Subject, open_subject, preset
from forecache.cli.parameters import MAX_STEPS, AsJson, out_folder
from forecache.cli.terminal import app, console, emit, progress, say
from forecache.environment import environment
from forecache.io import files
from forecache.io.text import MIB
from forecache.report import figures
from forecache.zoo import SHAPES

DEFAULTS = ("all-computed", "fora-25", "fora-50", "fora-75", "goc-50", "taylor-50")


@app.command("bench")
def bench_command(
    model: Annotated[
        str, typer.Option(help=f"digits, {', '.join(SHAPES)} (random weights), a pipeline folder, or a hub repository.")
    ] = "tiny",
    presets: Annotated[list[str] | None, typer.Option("--preset", help=f"Repeatable: {', '.join(PRESETS)}.")] = None,
    plans: Annotated[list[Path] | None, typer.Option("--plan", help="A plan file; repeatable.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps; 20, or those of --plan.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a model call.")] = 1,
    guidance: Annotated[bool, typer.Option(help="Two samples an image, as with classifier-free guidance.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of all plans in turn, after one to warm up.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16")] = "auto",
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model with torch first.")] = False,
    out: Annotated[Path, out_folder("Folder for bench.json, bench.md and bench.png.")] = Path("out/bench"),
    as_json: AsJson = False,
) -> None:
    """Time plans on a model: full and skipped steps, whole runs, and the cache, each against what was predicted.

    All plans run in one process in turn; ratios are to the bare model in the same round. No weights are needed.

    Example: `forecache bench --model tiny --preset fora-50 --preset goc-50 --rounds 3 --threads 1`

    Example: `forecache bench --model dit-xl-2 --plan plan.json --batch 8 --device cuda --out out/bench`
    """
    if threads is not None:
        torch.set_num_threads(threads)
    loaded = {path.stem: fc.Plan.load(path) for path in plans or ()}
    num_steps = steps or next((plan.num_steps for plan in loaded.values()), 20)
    methods = {name: preset(name, num_steps) for name in presets or (() if loaded else DEFAULTS)}
    subject = open_subject(model, batch * (2 if guidance else 1), device, dtype)
    grid = subject.grid(num_steps)
    chosen = {name: method.plan(grid) for name, method in methods.items()} | loaded
    with progress(rounds * (len(chosen) + 1), still=True) as (bar, task):

        def show(name: str) -> None:
            bar.update(task, advance=1, description=name, refresh=True)

        rows = speed.measure(subject, chosen, rounds=rounds, compiled=compiled, on_run=show)
    settings = {"command": " ".join(["forecache", *sys.argv[1:]]), "steps": num_steps, "rounds": rounds}
    settings |= {"batch": batch, "guidance": guidance, "compiled": compiled}
    title = _title(subject, num_steps, rounds)
    document = speed.document(subject, rows, settings)
    _write(out, rows, document, title)
    if as_json:
        emit(document)
    console.print(_table(rows, title))
    say(_legend())
    say(f"Wrote {out / 'bench.json'}, {out / 'bench.md'}, {out / 'bench.png'}.")


def _write(out: Path, rows: list[speed.PlanSpeed], document: dict[str, Any], title: str) -> None:
    files.write_json(out / "bench.json", document)
    files.write(out / "bench.md", "\n".join([*speed.table(rows), "", f"{title}. {speed.LEGEND}"]) + "\n")
    figures.draw_speed(rows, out / "bench.png", title)


def _title(subject: Subject, num_steps: int, rounds: int) -> str:
    place = environment()
    where = place["gpu"] if subject.model.device.type == "cuda" else f"{place['cpu']}, {place['threads']} threads"
    return f"{subject.name}, {num_steps} steps, {subject.rows} samples a call, {rounds} rounds, {where}"


def _table(rows: list[speed.PlanSpeed], title: str) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    table = Table(title=title, title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("plan", no_wrap=True)
    for name in (
        "fewer\nMACs",
        "less\ntime",
        "reali-\nsed",
        "full\nstep",
        "skipped\nstep",
        "mixed\nstep",
        "cache\nMiB",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.cost is None:
            step = f"{row.steps['full'].median * 1e3:.2f} ms"
            table.add_row(row.name, "", f"{row.run.median:.3f} s", "", step, "", "", "")
            continue
        shares = [f"{row.step_ratios[kind].median:.1%}" if kind in row.steps else "" for kind in speed.KINDS]
        same = "" if row.cache_bytes == row.cost.cache_bytes else " !"
        times = f"{row.cost.speedup:.2f}x", f"{row.time_ratio.median:.2f}x", f"{row.realised:.0%}"
        table.add_row(row.name, *times, *shares, f"{row.cache_bytes / MIB:.2f}{same}")
    return table


def _legend() -> str:
    place = environment()
    return (
        "Fewer MACs is what to expect, less time what was measured, realised the one over the other. Steps are shares\n"
        "of a step of the bare model: every site computed, none, or some. ! where the cache is not as predicted.\n"
        f"torch {place['torch']}, diffusers {place['diffusers']}."
    )
